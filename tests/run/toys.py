"""Workers without a model, for tests of the pool: they do as the item says and write down what they do."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from ezigen.config import ConfigurationError
from tasks.cluster.worker import BatchTooLarge, WorkerBroken


class ToyWorker:
    """Items are texts such as "3:kill"; the part after the colon is what happens to the worker that runs it."""

    def __init__(self, diary: Path) -> None:
        self.diary = diary

    def load(self) -> None:
        self.note("load")

    def note(self, text: str) -> None:
        with self.diary.open("a") as file:
            file.write(f"{os.getpid()} {text}\n")

    def run(self, items: Sequence[str]) -> list[str]:
        self.note("run " + ",".join(items))
        for item in items:
            act(item.partition(":")[2], len(items))
        self.note("end " + ",".join(items))
        return [f"done {item}" for item in items]


def act(deed: str, num_items: int) -> None:
    if deed == "kill":
        time.sleep(0.5)  # a batch that dies at once may take the answer to the batch before it along
        os.kill(os.getpid(), 9)
    elif deed == "raise":
        raise ValueError("this one is odd")
    elif deed == "broken":
        raise WorkerBroken("the device is gone")
    elif deed == "large" or (deed == "pair" and num_items > 1):
        raise BatchTooLarge("no memory left")
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

    def lines(self) -> list[tuple[int, str, list[str]]]:
        """(pid, verb, items), oldest first."""
        if not self.path.exists():
            return []
        parts = [line.split(" ", 2) for line in self.path.read_text().splitlines()]
        return [(int(pid), verb, rest[0].split(",") if rest else []) for pid, verb, *rest in parts]

    def pids(self) -> set[int]:
        return {pid for pid, _, _ in self.lines()}

    def runs_of(self, item: str) -> list[list[str]]:
        return [items for _, verb, items in self.lines() if verb == "run" and item in items]
