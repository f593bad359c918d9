"""`ray start` for one more node on 127.0.0.1: `python -m flows.stack.ray_node start --address=127.0.0.1:6379 ...`

Ray listens on the loopback interface alone only where it is told that this is no platform for clusters
(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0), and its command line then refuses a second node, of which Ray itself starts any
number. Two lines stand between: the command's check, and the exchange of 127.0.0.1 for the machine's own address.
"""

from ray._private import ray_constants, services
from ray.scripts.scripts import main

if __name__ == "__main__":
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.resolve_ip_for_localhost = lambda host: host
    main()  # type: ignore[no-untyped-call]
