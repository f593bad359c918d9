"""A worker's local folder: it goes with its process, and what a killed one left goes with the next."""

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "ezigen-training-"
_LOCK = "lock"
_MIN_AGE_S = 60.0


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder on this machine until the block ends."""
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        with (folder / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder


def remove_abandoned(min_age_s: float = _MIN_AGE_S) -> int:
    """Deletes what killed processes left; returns how many folders. A checkpoint in one of them may be 0.8 GB.

    Folders of living processes are locked; younger ones may not be locked yet.
    """
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as lock:  # another user's, or gone meanwhile
            if time.time() - folder.stat().st_mtime >= min_age_s:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed
