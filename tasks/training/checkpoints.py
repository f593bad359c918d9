"""Checkpoints of a run. A folder counts if and only if its complete.json, written last, fits what lies in it."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ezigen.config import ConfigurationError
from tasks.storage.filesystems import with_retries
from tasks.storage.folder import OutputFolder
from tasks.storage.stored_file import StoredFile
from tasks.storage.writing import is_local, is_temporary, write_atomic

FOLDER = "checkpoints"
COMPLETE = "complete.json"

_NAME = re.compile(r"step-(\d{8,})")
_CHUNK_BYTES = 4 * 2**20


def checkpoint_name(step: int) -> str:
    """step-00000500: the folder of the checkpoint after this step."""
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The reverse; None for a folder of another kind."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


@dataclass(frozen=True)
class StoredCheckpoint:
    """A complete checkpoint. Paths of the files are relative to its folder."""

    step: int
    files: tuple[StoredFile, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return checkpoint_name(self.step)

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(file.num_bytes for file in self.files)


class Checkpoints:
    """Those of one run, on any store. Whoever holds the run's lease, and its first worker, write; nobody else."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output

    def path(self, step: int) -> str:
        """The filesystem's path of a checkpoint's folder."""
        return self._output.path(f"{FOLDER}/{checkpoint_name(step)}")

    def uri(self, step: int) -> str:
        """Where it lies, for people."""
        return self._output.uri(f"{FOLDER}/{checkpoint_name(step)}")

    def find(self) -> list[StoredCheckpoint]:
        """The complete ones, by step."""
        found = (self._look(step) for step in sorted(self._steps()))
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def store(self, step: int, folder: Path) -> StoredCheckpoint:
        """Copies what lies in a local folder; what an earlier try left in the same place counts no more."""
        self._invalidate(step)
        files = tuple(self._store_file(step, path) for path in sorted(folder.iterdir()))
        content = {"kind": "checkpoint", "version": 1, "step": step, "files": [file.to_json() for file in files]}
        relative = f"{FOLDER}/{checkpoint_name(step)}/{COMPLETE}"
        self._output.write(relative, (json.dumps(content, indent=1) + "\n").encode())
        return StoredCheckpoint(step, files)

    @contextlib.contextmanager
    def open(self, step: int, scratch: Path) -> Iterator[Path]:
        """A local folder with the checkpoint's files, compared with their checksums.

        Raises ConfigurationError, naming the file, if one is missing or is not what was written.
        """
        checkpoint = self._look(step)
        if checkpoint is None:
            raise ConfigurationError(_damaged(self.uri(step), "it is not complete"))
        folder = self._fetch(checkpoint, scratch)
        try:
            for file in checkpoint.files:
                if _checksum(folder / file.path) != file.xxh3:
                    raise ConfigurationError(_damaged(f"{self.uri(step)}/{file.path}", "its checksum is another one"))
            yield folder
        finally:
            if folder.parent == scratch:
                shutil.rmtree(folder, ignore_errors=True)

    def remove_after(self, step: int) -> list[int]:
        """Deletes those of later steps, the newest first; returns their steps."""
        later = sorted((found for found in self._steps() if found > step), reverse=True)
        for found in later:
            self._remove(found)
        return later

    def collect(self, num_kept: int) -> list[int]:
        """Deletes what is not complete and all complete ones but the newest; returns their steps.

        Call it only while no worker writes.
        """
        kept = {checkpoint.step for checkpoint in self.find()[-num_kept:]}
        surplus = sorted(step for step in self._steps() if step not in kept)
        for step in surplus:
            self._remove(step)
        return surplus

    # ---- one folder

    def _look(self, step: int) -> StoredCheckpoint | None:
        """The checkpoint of a step, None if it is not complete."""
        relative = f"{FOLDER}/{checkpoint_name(step)}"
        try:
            values: dict[str, Any] = json.loads(self._output.read(f"{relative}/{COMPLETE}"))
            files = tuple(StoredFile.from_json(stored) for stored in values["files"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        sizes = self._output.list(relative)
        if values.get("step") != step or any(sizes.get(file.path) != file.num_bytes for file in files):
            return None
        return StoredCheckpoint(step, files)

    def _store_file(self, step: int, source: Path) -> StoredFile:
        filesystem, target = self._output.filesystem, f"{self.path(step)}/{source.name}"
        checksum = _checksum(source)
        if is_local(filesystem):
            # Through the page cache once: a checkpoint of SD2.1-base's adapters is 0.8 GB in four files.
            write_atomic(filesystem, target, source.read_bytes())
        else:
            with_retries(lambda: filesystem.put_file(os.fspath(source), target), f"writing {self.uri(step)}")
        return StoredFile(source.name, source.stat().st_size, 0, checksum)

    def _fetch(self, checkpoint: StoredCheckpoint, scratch: Path) -> Path:
        filesystem, path = self._output.filesystem, self.path(checkpoint.step)
        if is_local(filesystem):
            return Path(path)
        folder = scratch / checkpoint.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in checkpoint.files:
            source, target = f"{path}/{file.path}", os.fspath(folder / file.path)
            with_retries(
                lambda source=source, target=target: filesystem.get_file(source, target),  # type: ignore[misc]
                f"reading {self.uri(checkpoint.step)}/{file.path}",
            )
        return folder

    def _remove(self, step: int) -> None:
        self._invalidate(step)
        filesystem, path = self._output.filesystem, self.path(step)
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: filesystem.rm(path, recursive=True), f"deleting {self.uri(step)}")

    def _invalidate(self, step: int) -> None:
        """From here on the folder counts no more, whatever lies in it."""
        filesystem, path = self._output.filesystem, f"{self.path(step)}/{COMPLETE}"
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: filesystem.rm_file(path), f"deleting {self.uri(step)}/{COMPLETE}")

    def _steps(self) -> list[int]:
        """Of all folders with something in them, complete or not. Emptied object stores go on listing their folders."""
        filesystem, path = self._output.filesystem, self._output.path(FOLDER)
        try:
            entries = with_retries(lambda: filesystem.ls(path, detail=True), f"listing {self._output.uri(FOLDER)}")
        except FileNotFoundError:
            return []
        names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")
        return [step for name in names if not is_temporary(name) and (step := checkpoint_step(name)) is not None]


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _damaged(what: str, reason: str) -> str:
    return (
        f"{what} is not what was written ({reason}). Delete the checkpoint's folder; the next run continues from the "
        "one before it."
    )
