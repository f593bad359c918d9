"""Local files opened as they were checked."""

import os
import stat
from pathlib import PurePosixPath
from typing import BinaryIO

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC  # opening a pipe would wait for its writer


def open_unlinked(path: str) -> BinaryIO:
    """Opens a regular file for reading by an absolute path that has no link in it, as `os.path.realpath` gives it.

    A link that was put into the path after it was checked is not followed. Raises OSError, FileNotFoundError for what
    is no file.
    """
    *folders, name = PurePosixPath(path).parts
    folder = os.open(folders[0], _FOLDER)
    try:
        for part in folders[1:]:
            below = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        file = os.open(name, _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(f"{path} is no regular file")
    return os.fdopen(file, "rb")
