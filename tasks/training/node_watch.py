"""Whether Ray is still there for a driver that has joined a cluster: nothing else in the driver would notice."""

import threading
import time

import ray

from tasks.cluster import ClusterLost
from tasks.storage.filesystems import describe_error

_PERIOD_S = 2.0
_SILENCE_S = 60.0


class NodeWatch:
    """Asks Ray's head for this process's node, in a thread of its own because the question may block."""

    def __init__(self) -> None:
        self._node_id = str(ray.get_runtime_context().get_node_id())
        self._is_alive = True
        self._trouble = ""
        self._answered_s = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="node-watch", daemon=True).start()

    def check(self) -> None:
        """Raises ClusterLost if the node has died, or if nothing answers for a minute. Costs microseconds."""
        if not self._is_alive:
            raise ClusterLost("the Ray node that this process belongs to has died; start it again, then run again")
        if time.monotonic() - self._answered_s > _SILENCE_S:
            raise ClusterLost(f"Ray's head does not answer any more ({self._trouble or 'it is silent'})")

    def close(self) -> None:
        """Ends the thread, once it has its answer."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            try:
                self._is_alive = any(
                    node["Alive"] and node["NodeID"] == self._node_id
                    for node in ray.nodes()  # type: ignore[no-untyped-call]
                )
                self._answered_s = time.monotonic()
            except Exception as error:  # noqa: BLE001 - what is wrong is told by `check`
                self._trouble = describe_error(error)
