"""What killed writers leave behind in an output folder."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.storage.folder import OutputFolder
from tasks.storage.writing import is_local, is_temporary

_AGE_S = 2.0
"""Younger temporary files may be the lease's; at the end of a run nobody else writes."""


def remove_leftovers(output: OutputFolder, folders: Sequence[str], older_than_s: float = _AGE_S) -> int:
    """Deletes the temporary files in the output and in these folders of it; returns how many.

    Call it only while holding the lease and when no worker is left. Object stores have none.
    """
    if not is_local(output.filesystem):
        return 0
    root, removed, oldest = Path(output.root.path), 0, time.time() - older_than_s
    for folder in (root, *(root / name for name in folders)):
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if is_temporary(path.name) and path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
    return removed
