"""Shards through Ray Data: one row of a dataset is one shard, one actor makes one shard at a time."""

import threading
from collections.abc import Callable, Sequence

from ezigen.config import RayConfig
from tasks.sharding.report import ShardReport
from tasks.sharding.work import ShardWork


def run_shards(
    work: ShardWork,
    shards: Sequence[str],
    *,
    cluster: RayConfig,
    on_report: Callable[[ShardReport], None],
    check: Callable[[], None] = lambda: None,
    tick: Callable[[int, int], None] = lambda _in_flight, _num_workers: None,
    stop: threading.Event | None = None,
    worker_memory_bytes: int = 0,
) -> None:
    """Makes every shard on Ray, as many at a time as there are workers. No shards: no Ray.

    `check` is called several times a second and may raise to end the run at once, as a lost lease does. `tick` gets the
    shards in flight and the workers that are ready. Setting `stop` ends the intake: what is in flight may finish within
    `cluster.grace_period_s`. `on_report` is called in this thread, in the order in which shards finish.

    Raises ShardsFailed, naming them, at the end of a run in which shards raised or killed their worker three times;
    ConfigurationError that `open` raised; ClusterLost when Ray itself is gone.
    """
    raise NotImplementedError
