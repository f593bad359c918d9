"""Work without pictures: shards say what happens to the worker that makes them, and everything is written down."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ezigen.config import ConfigurationError
from tasks.sharding import ShardReport, store_file
from tasks.storage import OutputFolder


@dataclass(frozen=True)
class ToyWork:
    """Shards are texts such as "r0-00003:kill"; the part after the colon is the deed."""

    output: OutputFolder
    opening: str = ""

    def note(self, text: str) -> None:
        with Path(self.output.path("diary")).open("a") as file:
            file.write(f"{os.getpid()} {text}\n")

    def open(self) -> None:
        self.note("open")
        if self.opening == "refuse":
            raise ConfigurationError("model: there is none at /nowhere; give a folder that holds one.")
        if self.opening == "raise":
            raise OSError("the disk is odd")
        act(self.opening)

    def meet(self) -> None:
        """Waits until another worker has begun a shard, and a little longer, so that the driver hears of both."""
        diary, deadline = Diary(Path(self.output.root.path)), time.monotonic() + 60
        while len({pid for pid, verb, _ in diary.lines() if verb == "begin"}) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.5)

    def make(self, shard: str) -> ShardReport:
        self.note(f"begin {shard}")
        if shard.endswith(":meet"):
            self.meet()
        act(shard.partition(":")[2], Path(self.output.path(f"{shard}.once")))
        stored = store_file(self.output, f"made/{shard}", shard.encode(), rows=2)
        self.note(f"end {shard}")
        return ShardReport(shard, rows=2, refused={"odd": 1}, files=(stored,), counts={"toys": 2})


def act(deed: str, once: Path | None = None) -> None:
    if deed == "once" and once is not None and not once.exists():
        once.touch()
        deed = "kill"
    if deed == "kill":
        os.kill(os.getpid(), 9)
    elif deed == "raise":
        raise ValueError("this shard is odd")
    elif deed.startswith("sleep"):
        time.sleep(float(deed[5:]))


class Diary:
    """What all workers of a test wrote down."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "diary"

    def lines(self) -> list[tuple[int, str, str]]:
        """(pid, verb, shard), oldest first."""
        if not self._path.exists():
            return []
        parts = [line.split(" ") for line in self._path.read_text().splitlines()]
        return [(int(pid), verb, rest[0] if rest else "") for pid, verb, *rest in parts]

    def count(self, verb: str, shard: str = "") -> int:
        return sum(line[1] == verb and (not shard or line[2] == shard) for line in self.lines())

    def pids(self) -> set[int]:
        return {pid for pid, _, _ in self.lines()}
