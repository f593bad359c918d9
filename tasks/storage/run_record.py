"""run.json: what a run was asked to do, with which code and models, and what came of it."""

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Self

RunState = Literal["running", "finished", "stopped", "failed"]

MAX_HISTORY = 200


@dataclass(frozen=True)
class RunSummary:
    """One earlier run on the same output, as far as a report needs it."""

    run_id: str
    state: RunState
    started_at: str
    finished_at: str | None
    counts: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json. Times are ISO 8601 in UTC; configurations are plain JSON values."""

    run_id: str
    state: RunState
    started_at: str
    finished_at: str | None = None
    flow: str = "personalize_catalog"
    inputs: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    """What build_pairs and precompute_features were asked to make."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    history: tuple[RunSummary, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall time of the run, or until now for one that has not been closed."""
        end = datetime.fromisoformat(self.finished_at) if self.finished_at else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.started_at)).total_seconds()

    def summary(self) -> RunSummary:
        """What later runs keep of this one. A run that was never closed counts as failed, with no known length."""
        unclosed = self.state == "running"
        return RunSummary(
            run_id=self.run_id,
            state="failed" if unclosed else self.state,
            started_at=self.started_at,
            finished_at=self.finished_at,
            counts=dict(self.counts),
            seconds=0.0 if self.finished_at is None else self.seconds,
        )

    def after(self, previous: "RunRecord | None") -> Self:
        """The record with the previous run and its history behind it."""
        if previous is None or previous.run_id == self.run_id:
            return self
        return replace(self, history=(*previous.history, previous.summary())[-MAX_HISTORY:])

    def closed(self, state: RunState, counts: Mapping[str, int], **changes: Any) -> Self:
        """The record at its end."""
        return replace(self, state=state, finished_at=now_text(), counts=dict(counts), **changes)

    def to_json(self) -> bytes:
        """UTF-8 JSON for people and machines."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False, sort_keys=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The inverse of `to_json`; fields that a newer version added are left out. Raises ValueError."""
        values = json.loads(data)
        if not isinstance(values, dict):
            raise TypeError("run.json does not hold an object")
        known = {f.name for f in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        history = tuple(RunSummary(**summary) for summary in given.pop("history", ()))
        return cls(**given, history=history)


def new_run_id() -> str:
    """A name that sorts by time and is unique among runs started in the same second."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}"


def now_text() -> str:
    """The time in the form that run.json uses."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed, for `RunRecord.versions`."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
