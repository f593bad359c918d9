"""The lease: one run at a time on one output, on any store, without comparing clocks."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from ezigen.config import ConfigurationError
from tasks.storage.filesystems import describe_error
from tasks.storage.folder import OutputFolder
from tasks.storage.holder import Holder
from tasks.storage.lease_stores import LeaseStore, open_lease_store
from tasks.storage.locations import Location

logger = logging.getLogger(__name__)

LEASE_NAME = "lease.json"
BEATS_PER_TTL = 6
# A holder gives up before anybody else may take over.
SAFE_SHARE = 0.8


class LeaseHeld(RuntimeError):  # noqa: N818
    """Another run works on this output. The message names it and says what to do."""


class LeaseLost(RuntimeError):  # noqa: N818
    """The run may no longer write: it was silent for too long and another one may have started."""


class Lease:
    """A hold on an output for the length of a `with` block; `check` before every write of results.

    lease.json carries a counter that a thread raises six times per `ttl_s`. A run that finds it watches the counter by
    its own clock: a change means that the holder lives (LeaseHeld, or `wait` for it to end), no change for the holder's
    whole ttl_s means that it may be taken over. A holder of the same machine is known to be alive or dead at once.
    """

    def __init__(
        self,
        output: OutputFolder,
        owner: str,
        ttl_s: float = 60.0,
        *,
        wait: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        location = Location(output.root.scheme, output.path(LEASE_NAME))
        self._store: LeaseStore = open_lease_store(output.filesystem, location)
        self._uri, self._owner, self._ttl_s, self._wait = output.root_uri, owner, ttl_s, wait
        self._stop_waiting = stop or threading.Event()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._holder: Holder | None = None
        self._version: str | None = None
        self._renewed_s = 0.0
        self._lost = ""

    def __enter__(self) -> Self:
        """Takes the hold. Raises LeaseHeld."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the hold, after waiting if so asked. Raises LeaseHeld; ConfigurationError if it cannot be written."""
        try:
            self._acquire()
        except OSError as error:
            raise ConfigurationError(
                f"output_uri {self._uri} cannot be written ({describe_error(error)}); "
                "check that the folder or bucket exists and that you may write there."
            ) from error

    def _acquire(self) -> None:
        watch = _Watch()
        while True:
            data, version = self._store.read()
            holder = _parse(data)
            if holder is None or holder.released or holder.is_dead() or watch.has_expired(holder):
                if self._take(version, holder):
                    return
                continue
            if not self._wait and (holder.is_alive() or watch.has_moved(holder)):
                raise LeaseHeld(self._describe(holder))
            watch.see(holder, self._uri)
            if self._stop_waiting.wait(min(1.0, holder.ttl_s / 20)):
                raise LeaseHeld(f"{self._describe(holder)} This run was stopped while it waited.")

    def check(self) -> None:
        """Raises LeaseLost unless this run still holds the output."""
        if not self._lost and self._age_s() > self._ttl_s * SAFE_SHARE:
            # The process or its thread was frozen: only the store knows whether somebody took over meanwhile.
            self._renew_or_lose()
        if self._lost:
            raise LeaseLost(f"{self._uri}: {self._lost} Nothing more is written; run again to do what is missing.")

    def release(self) -> None:
        """Ends the hold, so that the next run starts at once. Does nothing if it is not held."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            holder, self._holder = self._holder, None
            if holder is None or self._lost:
                return
            try:
                self._store.swap(holder.ended().to_json(), self._version)
            except Exception as error:  # noqa: BLE001 - the run is over; the hold then expires by itself
                logger.warning("%s: the lease could not be released: %s", self._uri, describe_error(error))

    def _take(self, version: str | None, previous: Holder | None) -> bool:
        holder, started_s = Holder.here(self._owner, self._ttl_s), _now_s()
        new_version = self._store.swap(holder.to_json(), version)
        if new_version is None:
            return False
        if previous is not None and not previous.released:
            logger.warning("%s: taken over from %s, which is gone", self._uri, previous.describe())
        self._holder, self._version, self._renewed_s, self._lost = holder, new_version, started_s, ""
        self._ended.clear()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return True

    def _keep(self) -> None:
        while not self._ended.wait(self._ttl_s / BEATS_PER_TTL) and not self._lost:
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001 - a store that is away for a moment is not a lost lease
                logger.warning("%s: the lease could not be renewed yet: %s", self._uri, describe_error(error))

    def _renew_or_lose(self) -> None:
        try:
            self._renew()
        except Exception as error:  # noqa: BLE001 - whatever it is, the hold can no longer be shown
            self._lost = f"the hold could not be renewed for {self._age_s():.0f} s ({describe_error(error)})."

    def _renew(self) -> None:
        with self._lock:
            if self._holder is None:
                return
            started_s, renewed = _now_s(), self._holder.next_beat()
            version = self._store.swap(renewed.to_json(), self._version)
            if version is None:
                other = _parse(self._store.read()[0])
                self._lost = f"the hold went to {other.describe()}." if other else "lease.json was removed."
            else:
                self._holder, self._version, self._renewed_s = renewed, version, started_s

    def _age_s(self) -> float:
        return _now_s() - self._renewed_s

    def _describe(self, holder: Holder) -> str:
        return (
            f"{self._uri} is in use by {holder.describe()}. Wait for it to end, set if_busy to wait, "
            "or choose another output."
        )


def read_holder(output: OutputFolder) -> Holder | None:
    """Who holds an output at the moment; None if nobody does, or if it was a process of this machine that is gone.

    The process of another machine may be gone, too: `Holder.renewed_at` says when it was heard of last.
    """
    store = open_lease_store(output.filesystem, Location(output.root.scheme, output.path(LEASE_NAME)))
    holder = _parse(store.read()[0])
    return None if holder is None or holder.released or holder.is_dead() else holder


class _Watch:
    """What was seen of a holder's counter, and for how long by the watcher's own clock."""

    def __init__(self) -> None:
        self._seen: tuple[str, int] | None = None
        self._since_s = 0.0

    def see(self, holder: Holder, uri: str) -> None:
        """Notes the counter's present state."""
        if self._seen != (holder.token, holder.beat):
            if self._seen is None or self._seen[0] != holder.token:
                logger.info("%s is held by %s; watching for a sign of life", uri, holder.describe())
            self._seen, self._since_s = (holder.token, holder.beat), _now_s()

    def has_moved(self, holder: Holder) -> bool:
        """Whether the counter changed since it was last noted."""
        return self._seen is not None and self._seen != (holder.token, holder.beat)

    def has_expired(self, holder: Holder) -> bool:
        """Whether the counter has stood still for the holder's whole ttl."""
        return self._seen == (holder.token, holder.beat) and _now_s() - self._since_s > holder.ttl_s


def _parse(data: bytes) -> Holder | None:
    """The record, or None for content that is none: nothing yet, or what a crash left of a change."""
    try:
        return Holder.from_json(data)
    except (ValueError, TypeError):
        return None


def _now_s() -> float:
    """A clock that nobody sets and that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
