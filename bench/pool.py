"""The planner at 64 simulated workers: time to the end and decisions per second, without Ray.

    python bench/pool.py [--items 4096] [--workers 64] [--many 100000]

Items take 3 to 10 loops. A worker does one loop of all items in its slots at a time; what that takes is partly fixed
and partly grows with the items (fixed share: 0 is a device that one item fills, 1 a device that 16 items do not slow
down). Messages take no time and nobody dies. "Batches" is the same work in batches that wait for their slowest item.
"""

import argparse
import heapq
import json
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from lines import show

from tasks.cluster.planner import ItemPlanner, PoolLimits, Ticket

NUM_SLOTS = 16
NUM_AHEAD = 8


@dataclass(frozen=True)
class Item:
    """A row of the catalog and the loops that it will turn out to need."""

    number: int
    num_loops: int


@dataclass
class Engine:
    """A worker's slots, and what it holds ahead."""

    slots: dict[Ticket[Item], int] = field(default_factory=dict)
    ahead: deque[Ticket[Item]] = field(default_factory=deque)
    is_running: bool = False

    def fill(self) -> None:
        """Items enter free slots."""
        while self.ahead and len(self.slots) < NUM_SLOTS:
            ticket = self.ahead.popleft()
            self.slots[ticket] = ticket.item.num_loops

    def loop(self) -> list[Ticket[Item]]:
        """One loop of everything in the slots; returns what is finished."""
        self.slots = {ticket: left - 1 for ticket, left in self.slots.items()}
        finished = [ticket for ticket, left in self.slots.items() if not left]
        for ticket in finished:
            del self.slots[ticket]
        return finished


class Simulation:
    """Workers that are ready at once and never fail."""

    def __init__(
        self,
        items: Sequence[Item],
        num_workers: int,
        fixed_share: float,
        affinity: Callable[[Item], Hashable] | None = None,
        read_ahead: int = 1024,
    ) -> None:
        times = {"item_timeout_s": 1e9, "start_timeout_s": 1e9}
        bounds = PoolLimits(num_workers, NUM_SLOTS, NUM_AHEAD, read_ahead=read_ahead, **times)
        self.planner = ItemPlanner(items, bounds, affinity)
        self.fixed_share = fixed_share
        self.engines: dict[int, Engine] = {}
        self.ends: list[tuple[float, int]] = []
        self.done_by: dict[int, int] = {}
        self.now = 0.0
        self.planner_s = 0.0
        self.num_withdrawn = 0

    def run(self) -> "Simulation":
        """Until everything is done."""
        for worker in self._ask(lambda: self.planner.plan_starts(self.now)):
            self.planner.worker_ready(worker)
            self.engines[worker] = Engine()
        self._send()
        while self.ends:
            self.now, worker = heapq.heappop(self.ends)
            self._answer(worker, self.engines[worker].loop())
            self.engines[worker].is_running = False
            self._take_back()
            self._send()
            self._begin(worker)
        assert self.planner.finished
        return self

    def _answer(self, worker: int, finished: list[Ticket[Item]]) -> None:
        began = time.perf_counter()
        for ticket in finished:
            self.planner.item_done(worker, ticket, self.now)
        self.planner_s += time.perf_counter() - began
        self.done_by.update((ticket.item.number, worker) for ticket in finished)

    def _take_back(self) -> None:
        for worker, num_asked in self._ask(self.planner.plan_withdrawals):
            ahead = self.engines[worker].ahead
            given = [ahead.pop() for _ in range(min(num_asked, len(ahead)))]
            self.planner.withdrawal_done(worker, num_asked, len(given))
            for ticket in given:
                self.planner.item_withdrawn(worker, ticket)
            self.num_withdrawn += len(given)

    def _send(self) -> None:
        planned = self._ask(lambda: self.planner.plan_assignments(self.now))
        for assignment in planned:
            self.engines[assignment.worker].ahead.append(assignment.ticket)
        for worker in {assignment.worker for assignment in planned}:
            self._begin(worker)

    def _begin(self, worker: int) -> None:
        engine = self.engines[worker]
        engine.fill()
        if engine.slots and not engine.is_running:
            engine.is_running = True
            heapq.heappush(self.ends, (self.now + seconds_per_loop(len(engine.slots), self.fixed_share), worker))

    def _ask(self, plan: Callable[[], list]) -> list:
        began = time.perf_counter()
        planned = plan()
        self.planner_s += time.perf_counter() - began
        return planned


def seconds_per_loop(num_items: int, fixed_share: float) -> float:
    """One loop of full slots takes a second."""
    return fixed_share + (1 - fixed_share) * num_items / NUM_SLOTS


def seconds_of_batches(items: Sequence[Item], num_workers: int, fixed_share: float) -> float:
    """The same work in batches that stay together until their slowest item is done, as a pool of batches has it."""
    ends = [0.0] * num_workers
    for at in range(0, len(items), NUM_SLOTS):
        left = sorted(item.num_loops for item in items[at : at + NUM_SLOTS])
        steps = (sum(loops >= loop for loops in left) for loop in range(1, left[-1] + 1))
        heapq.heapreplace(ends, ends[0] + sum(seconds_per_loop(count, fixed_share) for count in steps))
    return max(ends)


def random_items(count: int) -> list[Item]:
    """The same ones every time."""
    rng = random.Random(0)
    return [Item(number, rng.randint(3, 10)) for number in range(count)]


def measure_makespan(num_items: int, num_workers: int, fixed_share: float) -> dict[str, float]:
    """How many times as fast as one worker all of them are, in the pool and in batches."""
    items = random_items(num_items)
    one = Simulation(items, 1, fixed_share).run().now
    pool = Simulation(items, num_workers, fixed_share).run()
    return {
        "items": num_items,
        "fixed_share": fixed_share,
        "seconds": pool.now,
        "times_one_worker": one / pool.now,
        "batches_times_one_worker": one / seconds_of_batches(items, num_workers, fixed_share),
        "withdrawn": pool.num_withdrawn,
    }


def measure_sharing(num_items: int, num_workers: int, order: str) -> dict[str, float | str]:
    """The share of sketches (4 items each) that one worker made alone, with and without affinity."""
    items = random_items(num_items)
    if order == "shuffled":
        items = shuffled_within(items, 512)
    shares: dict[str, float | str] = {"order": order}
    for name, affinity in (("affinity", sketch_of), ("none", None)):
        simulation = Simulation(items, num_workers, 0.2, affinity).run()
        workers = defaultdict(set)
        for item in items:
            workers[sketch_of(item)].add(simulation.done_by[item.number])
        shares[name] = sum(len(made_by) == 1 for made_by in workers.values()) / len(workers)
        shares[f"{name}_seconds"] = simulation.now
    return shares


def sketch_of(item: Item) -> int:
    """Four neighbours share a sketch."""
    return item.number // 4


def shuffled_within(items: list[Item], size: int) -> list[Item]:
    """Every run of so many items in random order."""
    rng = random.Random(1)
    parts = (items[at : at + size] for at in range(0, len(items), size))
    return [item for part in parts for item in rng.sample(part, len(part))]


def measure_decisions(num_items: int, num_workers: int, read_ahead: int, *, grouped: bool) -> dict[str, float | bool]:
    """Items that the planner assigns and sees done, per second of its own time."""
    affinity = sketch_of if grouped else None
    simulation = Simulation(random_items(num_items), num_workers, 0.2, affinity, read_ahead).run()
    per_s = num_items / simulation.planner_s
    return {"items": num_items, "grouped": grouped, "read_ahead": read_ahead, "items_per_s": per_s}


def show_figures(name: str, figures: dict) -> None:
    """One measurement as a line of JSON."""
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"measured": name, **rounded}), flush=True)


def main() -> None:
    """Measures, prints a JSON line each and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--many", type=int, default=100_000)
    options = parser.parse_args()
    makespans = [
        measure_makespan(num_items, options.workers, share)
        for num_items in (options.items, 4 * options.items)
        for share in (0.0, 0.2, 1.0)
    ]
    sharing = [measure_sharing(options.items, options.workers, order) for order in ("adjacent", "shuffled")]
    decisions = [
        measure_decisions(options.many, options.workers, read_ahead, grouped=grouped)
        for grouped, read_ahead in ((False, 1024), (True, 1024), (True, options.many))
    ]
    for name, found in (("makespan", makespans), ("sharing", sharing), ("decisions", decisions)):
        for figures in found:
            show_figures(name, figures)
    for found in makespans:
        setting = f"{options.workers} workers, {found['items']} items, fixed share {found['fixed_share']:.1f}"
        show(
            f"items per second, {setting}",
            found["times_one_worker"],
            "times one worker",
            1.0,
            wanted="ratio >= 60 of 64",
        )
    print_table(options.workers, makespans, sharing, decisions)


def print_table(num_workers: int, makespans: list[dict], sharing: list[dict], decisions: list[dict]) -> None:
    """What people read."""
    print(f"{num_workers} workers, as times one worker:")
    for found in makespans:
        print(
            f"  {found['items']:6,} items, fixed share {found['fixed_share']:.1f}: "
            f"pool {found['times_one_worker']:4.1f}x, batches {found['batches_times_one_worker']:4.1f}x"
        )
    print("sketches that one worker made alone:")
    for found in sharing:
        print(f"  {found['order']:8s}: {found['affinity']:.1%}, without affinity {found['none']:.1%}")
    print("items per second of the planner's time:")
    for found in decisions:
        kind = "grouped" if found["grouped"] else "single"
        print(f"  {kind:8s}, {found['read_ahead']:7,} read ahead: {found['items_per_s']:,.0f}")


if __name__ == "__main__":
    main()
