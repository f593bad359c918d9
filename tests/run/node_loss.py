"""A cluster of two nodes that loses one at work, in a process of its own: `python -m tests.run.node_loss FOLDER`."""

import json
import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ezigen.config import ClusterConfig, ConfigurationError
from tasks.cluster import connect, plan_workers
from tasks.cluster.planner import PoolLimits
from tasks.cluster.pool import ActorPool, Finished
from tests.run.toys import ToyWorker

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def main() -> None:
    folder = Path(sys.argv[1])
    head = Cluster(initialize_head=True, head_node_args=NODE)
    second = head.add_node(**NODE)
    config = ClusterConfig(address=head.address)
    with connect(config) as cluster:
        found = {"count": plan_workers(config, cluster.nodes).count, **lose_a_node(folder, head, second)}
    found["still_there"] = can_join(config)
    head.shutdown()
    print(json.dumps(found))


def lose_a_node(folder: Path, head: Cluster, second) -> dict:
    items = [f"{index}:sleep0.4" for index in range(20)]
    actor_class = ray.remote(ToyWorker).options(num_cpus=1, max_concurrency=3)
    limits = PoolLimits(num_workers=2, num_slots=1, num_ahead=1, item_timeout_s=60, start_timeout_s=100)
    pool = ActorPool(lambda _, num_slots: actor_class.remote(folder / "diary", num_slots), items, limits)
    tickets, loss = [], None
    for event in pool.run():
        if isinstance(event, Finished):
            tickets.append(event.ticket)
        if loss is None and pool.planner.num_ready == 2 and len(tickets) >= 4:
            loss = threading.Thread(target=head.remove_node, args=(second,), kwargs={"allow_graceful": False})
            loss.start()
    if loss is not None:
        loss.join()
    return {
        "done": sorted(int(ticket.item.partition(":")[0]) for ticket in tickets),
        "deaths": sum(ticket.deaths for ticket in tickets),
        "losses": sum(ticket.losses for ticket in tickets),
    }


def can_join(config: ClusterConfig) -> bool:
    try:
        with connect(config):
            return True
    except ConfigurationError:
        return False


if __name__ == "__main__":
    main()
