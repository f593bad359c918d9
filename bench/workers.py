"""Two workers against one, each an engine in a process of its own with one thread: `python bench/workers.py`.

A worker makes the same number of images in both cases, under the preset `balanced`, so that twice the workers ought to
make twice the images in the same time. Loading is not counted: all workers begin at a signal.

    python bench/workers.py [--items 8] [--workers 2] [--rounds 1]
"""

import argparse
import multiprocessing
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier

import numpy as np
import torch
from lines import show

from ezigen.config import ModelConfig, balanced, embedded
from ezigen.engine import EngineLimits, load_engine
from ezigen.mini.evaluate import PRODUCTS, make_cases
from ezigen.mini.world.scenes import SCENE_NAMES


def work(items: int, start: Barrier, end: Barrier) -> None:
    """One worker: loads, warms up, waits for the others, makes its images."""
    torch.set_num_threads(1)
    engine = load_engine(ModelConfig(device="cpu"), balanced(embedded()), EngineLimits(num_slots=4))
    cases = make_cases(PRODUCTS, SCENE_NAMES, 1)[: items + 1]
    requests = [replace(case.request, preview=False) for case in cases]
    list(engine.generate(requests[-1:]))
    start.wait()
    for ended in engine.generate(requests[:items]):
        if ended.error is not None:
            raise ended.error
    end.wait()


def images_per_second(num_workers: int, items: int) -> float:
    """Of all workers together."""
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(num_workers + 1), context.Barrier(num_workers + 1)
    workers = [context.Process(target=work, args=(items, start, end)) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    start.wait()
    started = time.perf_counter()
    end.wait()
    seconds = time.perf_counter() - started
    for worker in workers:
        worker.join()
    return num_workers * items / seconds


def main() -> None:
    """One worker and several in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    ratios = []
    for _ in range(args.rounds):
        one, several = images_per_second(1, args.items), images_per_second(args.workers, args.items)
        ratios.append(several / one)
        wanted = "ratio >= 1.9 for two workers on two cores of their own"
        show(f"images per second, {args.workers} workers against 1", several, "1/s", one, wanted=wanted)
    print(f"\n{args.workers} workers against one, median of {args.rounds}: {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
