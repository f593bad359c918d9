"""Stopping a run at a known moment: progress comes twice a second, which is too late for a short one."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def stop_when_stored(folder: Path, stop: threading.Event, num_shards: int = 1) -> Iterator[None]:
    """Sets `stop` as soon as so many shards lie in a folder."""
    ended = threading.Event()

    def watch() -> None:
        while len(list(folder.glob("r*.parquet"))) < num_shards and not ended.is_set():
            time.sleep(0.005)
        stop.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
