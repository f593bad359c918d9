"""The registry of adapters: <name>/<version>/ with card.json written last, and <name>/aliases/<alias>.json.

A version exists if and only if its card does. The card is created, never replaced, so a version never changes.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ezigen.adapters import AdapterCard
from ezigen.adapters.card import CARD_FILE, WEIGHTS_FILE
from ezigen.config import ConfigurationError
from tasks.adapters.alias import AliasFile, AliasRecord
from tasks.adapters.files import AdapterFolder, local_copy
from tasks.adapters.reference import LATEST, AdapterReference, check_alias, check_name, is_name, version_number
from tasks.inspection.near import nearest
from tasks.storage import Lease, Locations, OutputFolder
from tasks.storage.filesystems import describe_error, with_retries
from tasks.storage.run_record import now_text
from tasks.storage.writing import store_file, write_new

logger = logging.getLogger(__name__)

LEASE_TTL_S = 30.0
"""How long a publisher on another machine is waited for after its last sign of life."""


@dataclass(frozen=True)
class PublishedAdapter:
    """One version: where its folder is and what its card says."""

    name: str
    version: str
    uri: str
    card: AdapterCard

    @property
    def reference(self) -> str:
        """As people write it: NAME@v3."""
        return f"{self.name}@{self.version}"


class Registry:
    """Adapters by name and version below one folder, on any store. Opening it looks at nothing."""

    def __init__(self, uri: str, locations: Locations | None = None) -> None:
        self._root = OutputFolder(uri, locations)

    @property
    def uri(self) -> str:
        """The folder as people write it; absolute."""
        return self._root.root_uri

    def names(self) -> tuple[str, ...]:
        """Names with at least one version, sorted."""
        return tuple(sorted(self.versions_by_name()))

    def versions(self, name: str) -> tuple[str, ...]:
        """v1, v2, ... of a name, the newest last; empty for an unknown one."""
        check_name(name)
        return self._shelf(name).versions()

    def versions_by_name(self) -> dict[str, tuple[str, ...]]:
        """All of them, by one look at the store."""
        found: dict[str, list[str]] = {}
        for path in _find(self._root):
            match path.split("/"):
                case [name, version, file] if file == CARD_FILE and is_name(name) and version_number(version):
                    found.setdefault(name, []).append(version)
        return {name: _in_order(versions) for name, versions in sorted(found.items())}

    def aliases(self, name: str) -> dict[str, AliasRecord]:
        """Where the aliases of a name point, by alias."""
        check_name(name)
        return self._shelf(name).aliases()

    def get(self, name: str, version: str) -> PublishedAdapter:
        """A version by its number. Raises ConfigurationError, naming those that exist, if there is none."""
        return self.resolve(f"{name}@{version}")

    def resolve(self, reference: str) -> PublishedAdapter:
        """What NAME@ALIAS, NAME@VERSION or NAME (its alias `latest`) means now.

        Raises ConfigurationError, with names near it, for what does not exist.
        """
        wanted = AdapterReference.parse(reference)
        shelf = self._shelf(wanted.name)
        version = wanted.label
        if version_number(version) is None:
            record = shelf.alias(version).read()
            if record is None:
                raise self._unknown(wanted)
            version = record.version
        found = shelf.read(version)
        if found is None:
            raise self._unknown(wanted, version)
        return found

    def publish(
        self,
        name: str,
        folder: OutputFolder | Path,
        *,
        run: str = "",
        alias: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> PublishedAdapter:
        """Makes a folder with adapter.safetensors, card.json and extras the next version of a name.

        `run` is the digest of what made it: publishing the same run again returns the version that it has. The alias
        is pointed to the version unless it has meant it before: somebody moved it on since, and that holds. Several may
        publish at once; whoever comes second waits. A publisher that was killed leaves no version. Raises
        ConfigurationError if the folder is no adapter or the registry cannot be written.
        """
        check_name(name)
        if alias:
            check_alias(alias)
        shelf = self._shelf(name)
        with local_copy(folder) as copy:
            contents = AdapterFolder.read(copy)
            with self._hold(shelf) as lease:
                published = shelf.find_run(run) if run else None
                if published is None:
                    published = shelf.add(contents, run, dict(metrics or contents.card.metrics), lease)
                elif published.card.weights_sha256 != contents.weights_sha256:
                    logger.warning(
                        "%s was published by the same run with other weights; it stays as it is", published.reference
                    )
                if alias:
                    lease.check()
                    _point(shelf, alias, published)
        return published

    def promote(self, name: str, version: str, alias: str) -> PublishedAdapter:
        """Points an alias to a version, in one step; `version` may itself be an alias, as in staging to production."""
        check_alias(alias)
        published = self.resolve(f"{name}@{version}")
        self._shelf(name).alias(alias).move(published.version)
        return published

    def _shelf(self, name: str) -> "_Shelf":
        return _Shelf(name, OutputFolder(self._root.uri(name), self._root.locations))

    @contextlib.contextmanager
    def _hold(self, shelf: "_Shelf") -> Iterator[Lease]:
        lease = Lease(shelf.folder, f"publishing adapter {shelf.name!r}", LEASE_TTL_S, wait=True)
        try:
            lease.acquire()
        except ConfigurationError as error:
            reason = describe_error(error.__cause__) if error.__cause__ else str(error)
            raise ConfigurationError(
                f"adapters_uri {self.uri} cannot be written ({reason}); check that the folder or bucket exists and "
                "that you may write there."
            ) from error
        try:
            yield lease
        finally:
            lease.release()

    def _unknown(self, wanted: AdapterReference, version: str = "") -> ConfigurationError:
        shown = f"adapter {wanted.name}@{wanted.label}"
        known = self.versions_by_name()
        if not known:
            return ConfigurationError(
                f"{shown}: {self.uri} holds no adapters; check adapters_uri, or publish one (`ezigen train`, "
                "`ezigen adapters import`)."
            )
        if wanted.name not in known:
            return ConfigurationError(
                f"{shown}: {self.uri} holds no adapter of that name; near it: {', '.join(nearest(wanted.name, known))}."
            )
        if version and version != wanted.label:
            return ConfigurationError(
                f"{shown}: the alias points to {version}, which is gone from {self.uri}; point it to a version with "
                "`ezigen adapters promote`."
            )
        labels = [*self.aliases(wanted.name), *known[wanted.name]]
        what = "alias" if version_number(wanted.label) is None else "version"
        hint = f" {wanted.name} alone means {wanted.name}@{LATEST}." if wanted.label == LATEST else ""
        return ConfigurationError(
            f"{shown}: {wanted.name} has no {what} {wanted.label} in {self.uri}; near it: "
            f"{', '.join(nearest(wanted.label, labels))}.{hint}"
        )


@dataclass(frozen=True)
class _Shelf:
    """The versions and aliases of one name."""

    name: str
    folder: OutputFolder

    def versions(self) -> tuple[str, ...]:
        """Versions with a card, the newest last."""
        parts = (path.split("/") for path in _find(self.folder))
        return _in_order(p[0] for p in parts if len(p) == 2 and p[1] == CARD_FILE and version_number(p[0]))

    def alias(self, alias: str) -> AliasFile:
        return AliasFile(self.folder, alias)

    def aliases(self) -> dict[str, AliasRecord]:
        names = (name.removesuffix(".json") for name in self.folder.list("aliases") if name.endswith(".json"))
        records = ((name, self.alias(name).read()) for name in names)
        return {name: record for name, record in records if record is not None}

    def read(self, version: str) -> PublishedAdapter | None:
        """A version, or None if there is none."""
        try:
            data = self.folder.read(f"{version}/{CARD_FILE}")
        except FileNotFoundError:
            return None
        uri = self.folder.uri(version)
        try:
            card = AdapterCard.model_validate_json(data)
        except ValidationError as error:
            raise ConfigurationError(f"adapter {uri}: {CARD_FILE} is not an adapter card: {error}") from error
        return PublishedAdapter(self.name, version, uri, card)

    def find_run(self, run: str) -> PublishedAdapter | None:
        """The version that a run was published as; the newest first, because that is the likely one."""
        cards = (self.read(version) for version in reversed(self.versions()))
        return next((found for found in cards if found is not None and found.card.run == run), None)

    def add(self, contents: AdapterFolder, run: str, metrics: dict[str, float], lease: Lease) -> PublishedAdapter:
        """The next version, the card last."""
        versions = self.versions()
        version = f"v{(version_number(versions[-1]) or 0) + 1 if versions else 1}"
        self._clear(version, lease)
        for name in (WEIGHTS_FILE, *contents.extras):
            lease.check()
            store_file(self.folder.filesystem, self.folder.path(f"{version}/{name}"), contents.folder / name)
        card = AdapterCard.model_validate(
            contents.card.model_dump()
            | {
                "name": self.name,
                "version": version,
                "created_at": now_text(),
                "run": run,
                "weights_sha256": contents.weights_sha256,
                "files": contents.extras,
                "metrics": metrics,
            }
        )
        lease.check()
        data = (card.model_dump_json(indent=2) + "\n").encode()
        if not write_new(self.folder.filesystem, self.folder.path(f"{version}/{CARD_FILE}"), data):
            raise RuntimeError(
                f"{self.folder.uri(version)} was published by another process meanwhile; publish again for the next one"
            )
        return PublishedAdapter(self.name, version, self.folder.uri(version), card)

    def _clear(self, version: str, lease: Lease) -> None:
        """Removes what a killed publisher left where the next version goes."""
        for path in _find(self.folder, version):
            lease.check()
            leftover = self.folder.path(f"{version}/{path}")
            with contextlib.suppress(FileNotFoundError):
                self.folder.filesystem.rm_file(leftover)


def _point(shelf: _Shelf, alias: str, published: PublishedAdapter) -> None:
    record = shelf.alias(alias).move(published.version, unless=lambda known: known.has_meant(published.version))
    if record.version != published.version:
        logger.warning(
            "alias %s was moved from %s to %s since it was published; it stays there",
            alias, published.version, record.version,
        )  # fmt: skip


def _find(folder: OutputFolder, below: str = "") -> list[str]:
    """Paths of all files below a folder, relative to it; one listing on an object store."""
    filesystem = folder.filesystem
    root = folder.path(below) if below else folder.root.path

    def look() -> list[str]:
        filesystem.invalidate_cache()
        return list(filesystem.find(root))

    try:
        found = with_retries(look, f"listing {folder.uri(below) if below else folder.root_uri}")
    except FileNotFoundError:
        return []
    prefix = root.strip("/") + "/"
    return [path.strip("/").removeprefix(prefix) for path in found if path.strip("/").startswith(prefix)]


def _in_order(versions: Iterator[str] | list[str]) -> tuple[str, ...]:
    return tuple(sorted(versions, key=lambda version: version_number(version) or 0))
