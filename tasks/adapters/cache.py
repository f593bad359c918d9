"""Copies of adapters on the machine that uses them: fetched once, whole or not at all, checked against the card."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from ezigen.adapters.card import AUTHORS_FILES, CARD_FILE, WEIGHTS_FILE, AdapterCard
from ezigen.config import ConfigurationError
from tasks.adapters.files import download, file_sha256
from tasks.storage import OutputFolder
from tasks.storage.filesystems import describe_error, with_retries
from tasks.storage.writing import TEMPORARY_MARK

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$EZIGEN_CACHE/adapters, or else ~/.cache/ezigen/adapters. Anything in it may be deleted at any time."""
    given = os.environ.get("EZIGEN_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ezigen"
    return (Path(given).expanduser() if given else base) / "adapters"


def fetch(source: OutputFolder) -> Path:
    """A local folder with the same adapter: weights and card, or the authors' checkpoint.

    Its name is the SHA-256 of the card if that says what the weights are, so that a published version is never fetched
    twice; else of the location and of what the store says about the files. One process fetches while the others of the
    machine wait. Raises ConfigurationError if there is no adapter, or if it is not what its card says.
    """
    try:
        names = _wanted(source)
        key, checksums = _identify(source, names)
        folder = cache_folder() / key
        with _locked(folder):
            if not _is_whole(folder, names, checksums):
                _download(source, names, checksums, folder)
    except OSError as error:
        raise ConfigurationError(f"adapter {source.root_uri} cannot be fetched: {describe_error(error)}") from error
    return folder


def check_weights(folder: Path, card: AdapterCard) -> None:
    """Raises ConfigurationError unless the weights are those that the card was written for."""
    if card.weights_sha256 and file_sha256(folder / WEIGHTS_FILE) != card.weights_sha256:
        raise _damaged(str(folder), WEIGHTS_FILE)


def _wanted(source: OutputFolder) -> tuple[str, ...]:
    stored = source.list("")
    if {WEIGHTS_FILE, CARD_FILE} <= set(stored):
        return WEIGHTS_FILE, CARD_FILE
    for name in AUTHORS_FILES:
        if name in stored:
            return (name,)
    raise ConfigurationError(
        f"adapter {source.root_uri}: no {WEIGHTS_FILE} with {CARD_FILE}, nor {' or '.join(AUTHORS_FILES)} of the "
        "authors, is stored there; check the location"
    )


def _identify(source: OutputFolder, names: tuple[str, ...]) -> tuple[str, Mapping[str, str]]:
    """The name of the copy, and the checksums that it must have, by file."""
    if CARD_FILE in names:
        data = source.read(CARD_FILE)
        try:
            card = AdapterCard.model_validate_json(data)
        except ValidationError as error:
            raise ConfigurationError(
                f"adapter {source.root_uri}: {CARD_FILE} is not an adapter card: {error}"
            ) from error
        if card.weights_sha256:
            digest = hashlib.sha256(data).hexdigest()
            return digest, {CARD_FILE: digest, WEIGHTS_FILE: card.weights_sha256}
    filesystem = source.filesystem
    states = with_retries(
        lambda: [filesystem.ukey(source.path(name)) for name in names], f"looking at {source.root_uri}"
    )
    text = json.dumps([source.root_uri, *zip(names, states, strict=True)])
    return hashlib.sha256(text.encode()).hexdigest(), {}


def _is_whole(folder: Path, names: tuple[str, ...], checksums: Mapping[str, str]) -> bool:
    """Whether the copy is there and still is what was fetched; disks fail, and people tidy up by hand."""
    return all((folder / name).is_file() for name in names) and all(
        file_sha256(folder / name) == checksum for name, checksum in checksums.items()
    )


def _download(source: OutputFolder, names: tuple[str, ...], checksums: Mapping[str, str], folder: Path) -> None:
    started = time.monotonic()
    # The same name every time: what a killed process left is found, and the lock keeps others away.
    unfinished = folder.parent / f"{TEMPORARY_MARK}{folder.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        for name in names:
            download(source, name, unfinished / name)
            if name in checksums and file_sha256(unfinished / name) != checksums[name]:
                raise _damaged(source.root_uri, name)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    num_bytes = sum((folder / name).stat().st_size for name in names)
    seconds = time.monotonic() - started
    logger.info("fetched adapter %s: %.1f MB in %.1f s", source.root_uri, num_bytes / 1e6, seconds)


def _damaged(where: str, name: str) -> ConfigurationError:
    return ConfigurationError(
        f"adapter {where}: {name} does not have the checksum in {CARD_FILE}; it was changed or damaged after it was "
        "published. Use another version, or publish it again."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; the kernel drops the lock of a dead one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
