"""Workers without a model, for tests of the pool: they do as the item says and write down what they do."""

import os
import threading
import time
from pathlib import Path

from ezigen.config import ConfigurationError
from tasks.cluster.worker import Withdrawn, WorkerBroken


class ToyWorker:
    """Items are texts such as "3:kill"; the part after the colon is what happens to the worker that runs it."""

    def __init__(self, diary: Path, num_slots: int) -> None:
        self.diary = diary
        self.num_free = num_slots
        self.ahead: list[str] = []

    def load(self) -> None:
        self.changed = threading.Condition()
        self.note("load")

    def note(self, text: str) -> None:
        with self.diary.open("a") as file:
            file.write(f"{os.getpid()} {text}\n")

    def run(self, item: str) -> str | Withdrawn:
        if not self.enter(item):
            return Withdrawn()
        try:
            self.note(f"run {item}")
            act(item.partition(":")[2])
            self.note(f"end {item}")
        finally:
            self.leave()
        return f"done {item}"

    def withdraw(self, max_items: int) -> int:
        with self.changed:
            given, self.ahead = self.ahead[-max_items:], self.ahead[:-max_items]
            self.changed.notify_all()
        return len(given)

    def enter(self, item: str) -> bool:
        """Waits for a free slot; False if the item was withdrawn meanwhile."""
        with self.changed:
            self.ahead.append(item)
            self.changed.wait_for(lambda: self.num_free or item not in self.ahead)
            if item not in self.ahead:
                return False
            self.ahead.remove(item)
            self.num_free -= 1
            return True

    def leave(self) -> None:
        with self.changed:
            self.num_free += 1
            self.changed.notify_all()


def act(deed: str) -> None:
    if deed == "kill":
        time.sleep(0.5)  # a process that dies at once may take the answer to an earlier item along
        os.kill(os.getpid(), 9)
    elif deed == "raise":
        raise ValueError("this one is odd")
    elif deed == "broken":
        raise WorkerBroken("the device is gone")
    elif deed.startswith("sleep"):
        time.sleep(float(deed[5:]))


class UnfitWorker(ToyWorker):
    def load(self) -> None:
        super().load()
        raise ConfigurationError("model: there is none at /nowhere; give a folder that holds one.")


class CrashingWorker(ToyWorker):
    def load(self) -> None:
        super().load()
        os.kill(os.getpid(), 9)


class SlowWorker(ToyWorker):
    def load(self) -> None:
        super().load()
        time.sleep(60)


class Diary:
    """What all workers of a test wrote down."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[int, str, str]]:
        """(pid, verb, item), oldest first."""
        if not self.path.exists():
            return []
        parts = [line.split(" ", 2) for line in self.path.read_text().splitlines()]
        return [(int(pid), verb, rest[0] if rest else "") for pid, verb, *rest in parts]

    def pids(self) -> set[int]:
        return {pid for pid, _, _ in self.lines()}

    def of(self, verb: str) -> list[str]:
        """The items that were begun ("run"), or done ("end"), as often as that happened."""
        return [item for _, found, item in self.lines() if found == verb]

    def pids_of(self, item: str) -> list[int]:
        return [pid for pid, verb, found in self.lines() if verb == "run" and found == item]

    def company(self) -> dict[tuple[int, str], set[str]]:
        """For each run of an item, by pid: what was at work in the same process at any time of it."""
        together: dict[tuple[int, str], set[str]] = {}
        at_work: dict[int, set[str]] = {}
        for pid, verb, item in self.lines():
            others = at_work.setdefault(pid, set())
            if verb == "end":
                others.discard(item)
            elif verb == "run":
                together[pid, item] = set(others)
                for other in others:
                    together[pid, other].add(item)
                others.add(item)
        return together
