"""Two workers against one, each an engine in a process of its own with one thread: `python bench/workers.py`.

A worker makes the same number of images in both cases, under the preset `balanced`, so that twice the workers ought to
make twice the images in the same time. Loading is not counted: all workers begin at a signal.

Beside it, what the machine itself gives: the same processes multiply small matrices that stay in a core's own cache,
and matrices that do not. Two cores that share caches, memory or one real core stay below twice there, too. CPU seconds
per image say the same from the other side: workers that waited for each other would cost no more of them.

    python bench/workers.py [--items 8] [--workers 2] [--rounds 3]
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import numpy as np
import torch
from lines import show

from ezigen.config import ModelConfig, balanced, embedded
from ezigen.engine import EngineLimits, load_engine
from ezigen.mini.evaluate import make_cases
from ezigen.mini.world.benchmarks import PRODUCTS
from ezigen.mini.world.scenes import SCENE_NAMES

Work = Callable[[], None]


@dataclass(frozen=True)
class Measured:
    """Units of work per second of all workers together, and CPU seconds that one unit took."""

    per_second: float
    cpu_seconds: float


def prepare_images(items: int) -> Work:
    """An engine that has made an image, and its work: `items` images."""
    engine = load_engine(ModelConfig(device="cpu"), balanced(embedded()), EngineLimits(num_slots=4))
    cases = make_cases(PRODUCTS, SCENE_NAMES, 1)[: items + 1]
    requests = [replace(case.request, preview=False) for case in cases]
    list(engine.generate(requests[-1:]))

    def work() -> None:
        for ended in engine.generate(requests[:items]):
            if ended.error is not None:
                raise ended.error

    return work


def prepare_products(side: int) -> Work:
    """Matrix products, about a second of them."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)

    def work() -> None:
        for _ in range(int(3e10 / side**3)):
            torch.mm(a, b, out=out)

    return work


def run_worker(
    prepare: Callable[[int], Work], size: int, start: Barrier, end: Barrier, cpu: "SimpleQueue[float]"
) -> None:
    """One process: gets ready, waits for the others, works."""
    torch.set_num_threads(1)
    work = prepare(size)
    start.wait()
    before = time.process_time()
    work()
    cpu.put(time.process_time() - before)
    end.wait()


def measure(num_workers: int, prepare: Callable[[int], Work], size: int, units: int) -> Measured:
    """So many processes at once; each does `units` units of work."""
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(num_workers + 1), context.Barrier(num_workers + 1)
    cpu: SimpleQueue[float] = context.SimpleQueue()
    workers = [context.Process(target=run_worker, args=(prepare, size, start, end, cpu)) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    start.wait()
    started = time.perf_counter()
    end.wait()
    seconds = time.perf_counter() - started
    spent = sum(cpu.get() for _ in workers)
    for worker in workers:
        worker.join()
    return Measured(num_workers * units / seconds, spent / (num_workers * units))


def compare(workers: int, prepare: Callable[[int], Work], size: int, units: int) -> tuple[Measured, Measured]:
    """One worker, then several."""
    return measure(1, prepare, size, units), measure(workers, prepare, size, units)


def main() -> None:
    """One worker and several in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {"images": [], "products in cache": [], "products beyond it": []}
    for _ in range(args.rounds):
        for name, prepare, size, units in (
            ("images", prepare_images, args.items, args.items),
            ("products in cache", prepare_products, 128, 1),
            ("products beyond it", prepare_products, 1536, 1),
        ):
            one, several = compare(args.workers, prepare, size, units)
            ratios[name].append(several.per_second / one.per_second)
            wanted = "ratio >= 1.9 for two workers on two cores of their own" if name == "images" else ""
            show(
                f"{name} per second, {args.workers} workers against 1",
                several.per_second,
                "1/s",
                one.per_second,
                wanted=wanted,
            )
            if name == "images":
                show("CPU time per image, likewise", several.cpu_seconds, "s", one.cpu_seconds)
    print()
    for name, values in ratios.items():
        print(f"{name}: {args.workers} workers against one, median of {args.rounds}: {np.median(values):.2f}")


if __name__ == "__main__":
    main()
