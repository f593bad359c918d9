"""Who holds an output: the record inside lease.json, and whether that process can be seen to be dead."""

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

from tasks.storage.run_record import now_text


@dataclass(frozen=True)
class Holder:
    """One hold on an output. `beat` grows while its process is alive; times are for people, never compared."""

    token: str
    owner: str
    host: str
    machine: str
    pid: int
    process_start: str
    ttl_s: float
    acquired_at: str
    renewed_at: str
    beat: int = 0
    released: bool = False

    @classmethod
    def here(cls, owner: str, ttl_s: float) -> Self:
        """A new hold by this process."""
        now = now_text()
        return cls(
            token=uuid.uuid4().hex,
            owner=owner,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()) or "",
            ttl_s=ttl_s,
            acquired_at=now,
            renewed_at=now,
        )

    def next_beat(self) -> Self:
        """The same hold, a moment later."""
        return replace(self, beat=self.beat + 1, renewed_at=now_text())

    def ended(self) -> Self:
        """The same hold after its run has ended."""
        return replace(self.next_beat(), released=True)

    def is_dead(self) -> bool:
        """Whether it was a process of this machine that is gone. False also where that cannot be seen."""
        return self._is_local() and _process_start(self.pid) != self.process_start

    def is_alive(self) -> bool:
        """Whether it is a running process of this machine. False also where that cannot be seen."""
        return self._is_local() and _process_start(self.pid) == self.process_start

    def describe(self) -> str:
        """For messages: who, where, since when."""
        return f"{self.owner} (host {self.host}, process {self.pid}, since {self.acquired_at})"

    def to_json(self) -> bytes:
        """UTF-8 JSON."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The inverse of `to_json`; fields of newer versions are left out. Raises ValueError or TypeError."""
        values = json.loads(data)
        if not isinstance(values, dict):
            raise TypeError("not an object")
        known = {f.name for f in fields(cls)}
        holder = cls(**{name: value for name, value in values.items() if name in known})
        return replace(holder, ttl_s=float(holder.ttl_s), pid=int(holder.pid), beat=int(holder.beat))

    def _is_local(self) -> bool:
        return bool(self.machine and self.process_start) and self.machine == _machine()


def _machine() -> str:
    """One boot of one machine as its processes see it: equal ids mean that process numbers can be compared.

    Containers that share a host's name have their own process numbers, and a rebooted machine starts them anew.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the program's name, may contain spaces and brackets.
    state, *others = stat.rpartition(")")[2].split()
    return None if state in "ZX" else others[18]
