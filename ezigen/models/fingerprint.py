"""Telling models apart by their content, without loading them and without torch."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ezigen.models.location import (
    READ,
    WEIGHTS,
    check_stack_folder,
    find_sam,
    find_weights,
    is_xl,
    resolve_folder,
    stack_components,
)


def model_fingerprint(model: str) -> str:
    """32 hex digits of everything that makes this model's images: configurations, tokenizer and weights, byte by byte.

    Equal on every machine, whatever the folder is called. The first call reads the files (about 1 s per GB); later ones
    remember each file's digest by path, size and time of change. Raises ConfigurationError like `load_stack`.
    """
    folder = resolve_folder(model)
    check_stack_folder(model, folder)
    return fingerprint_files(folder, _model_files(folder))


def image_encoder_fingerprint(folder: Path) -> str:
    """32 hex digits of what an image encoder's tokens depend on: configurations and weights."""
    configs = [path for name in ("config.json", "preprocessor_config.json") if (path := folder / name).is_file()]
    return fingerprint_files(folder, [*configs, *find_weights(folder, "image_encoder")])


def sam_fingerprint(model: str, *, option: str = "--set model.sketch.sam_model") -> str:
    """32 hex digits of what a SAM's outlines depend on. Raises ConfigurationError like `find_sam`."""
    folder = find_sam(model, option=option)
    return fingerprint_files(folder, [path for path in folder.iterdir() if path.suffix in READ])


def fingerprint_files(folder: Path, files: Iterable[Path]) -> str:
    """32 hex digits of the files' names within the folder and their contents."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        total.update(f"{path.relative_to(folder).as_posix()}={_file_digest(path)}\n".encode())
    return total.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    # It says what stands for a text that is not there.
    index = folder / "model_index.json"
    files = [index] if is_xl(folder) and index.is_file() else []
    for component, config in stack_components(folder).items():
        if component in WEIGHTS:
            files += [folder / component / config, *find_weights(folder / component, component)]
        else:
            files += [path for path in (folder / component).iterdir() if path.suffix in {".json", ".txt"}]
    return files


def _file_digest(path: Path) -> str:
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    remembered = _cache_folder() / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    with contextlib.suppress(OSError):
        return remembered.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    with contextlib.suppress(OSError):  # a read-only home costs time, not correctness
        _write(remembered, digest)
    return digest


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ezigen" / "digests"
