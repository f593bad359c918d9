"""The engine against a faithful batch-1 loop of the paper's algorithm: same items, same weights, same run.

    python bench/engine.py [--items 32] [--slots 4] [--per-prompt 1] [--rounds 1] [--device auto]

The baseline is `ezigen.sampling` with one request at a time, which reads like the paper and throws nothing away. Both
make the images of the embedded model's held-out products under the preset `embedded` (loops by similarity, 2 to 6).
The engine's images are compared with the baseline's. --per-prompt N gives N products the same prompt and seed, whose
sketches are then shared. Times are CPU seconds of one thread on a CPU, which other programs hardly touch, seconds on a
GPU; the "static" line is what batches would cost that wait for their slowest item, counted from the same loops.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from lines import show

from ezigen.config import ModelConfig, embedded
from ezigen.engine import NETWORK_PARTS, Engine, EngineLimits, Networks, occupancy
from ezigen.mini.evaluate import make_cases
from ezigen.mini.world.benchmarks import PRODUCTS
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.sampling import Generator, Request, Sample
from ezigen.sampling.load import load_networks


def make_requests(num_items: int, per_prompt: int) -> list[Request]:
    """Held-out products; previews are not wanted, as in a catalog's bulk."""
    cases = make_cases(PRODUCTS, SCENE_NAMES, 8)
    order = np.random.default_rng(0).permutation(len(cases))[:num_items]
    requests = [replace(cases[index].request, preview=False) for index in order]
    firsts = [requests[index - index % per_prompt] for index in range(len(requests))]
    return [
        replace(request, prompt=first.prompt, seed=first.seed, key=f"{number}")
        for number, (request, first) in enumerate(zip(requests, firsts, strict=True))
    ]


def timed(work: Callable[[], list[Sample]], device: torch.device) -> tuple[list[Sample], float]:
    """What it made, and the seconds that it took."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    made = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return made, clock() - started


def run_engine(engine: Engine, requests: Sequence[Request]) -> list[Sample]:
    """All samples, in the order of the requests."""
    samples = {}
    for ended in engine.generate(requests):
        if ended.sample is None:
            raise ended.error or RuntimeError(ended.key)
        samples[ended.key] = ended.sample
    return [samples[request.key] for request in requests]


def largest_difference(some: Sequence[Sample], others: Sequence[Sample]) -> int:
    """In levels of 255, over all pixels of all images."""
    pairs = zip(some, others, strict=True)
    return max(
        int(np.abs(np.asarray(one.image, np.int16) - np.asarray(other.image, np.int16)).max()) for one, other in pairs
    )


def static_occupancy(loops: Sequence[int], num_slots: int) -> float:
    """Share of slots that batches of consecutive items fill when each waits for its slowest item."""
    batches = [loops[start : start + num_slots] for start in range(0, len(loops), num_slots)]
    return sum(n + 1 for n in loops) / sum(num_slots * (max(batch) + 1) for batch in batches)


def main() -> None:
    """Both ways in turn; JSON lines, then a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--per-prompt", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sampler = embedded()
    stack, adapters, stop_encoder = load_networks(ModelConfig(device=args.device), sampler)
    requests = make_requests(args.items, args.per_prompt)
    limits = EngineLimits(num_slots=args.slots, max_held=4 * args.slots)
    one_by_one = Generator(stack, adapters, stop_encoder, sampler)
    ratios = []
    for _ in range(args.rounds):
        expected, baseline = timed(lambda: [one_by_one.generate([request])[0] for request in requests], stack.device)
        engine = Engine(Networks(stack, adapters, stop_encoder), sampler, limits)
        made, seconds = timed(lambda made_by=engine: run_engine(made_by, requests), stack.device)  # type: ignore[misc]
        ratios.append(baseline / seconds)
        wanted = "ratio >= 1.5 on a CPU, >= 4 on a GPU"
        show("images per second", args.items / seconds, "1/s", args.items / baseline, wanted=wanted)
    counts = engine.counters.snapshot()
    share = occupancy(counts)
    assert share is not None
    loops = [sample.num_loops for sample in made]
    calls = sum(value for name, value in counts.items() if name.startswith("unet_calls."))
    total = sum(value for name, value in counts.items() if name.startswith("seconds."))
    inside = sum(counts.get(f"seconds.{part}", 0.0) for part in NETWORK_PARTS)
    wanted = "value >= 0.95 with 16 items per slot; the baseline is a static batch's"
    show("slot occupancy", share, "share", static_occupancy(loops, args.slots), wanted=wanted)
    show("UNet evaluations", calls, "calls", sum(sample.num_unet_calls for sample in expected))
    show("time outside the networks", 1 - inside / total, "share", wanted="value <= 0.03")
    print(f"\nimages/s against batch 1, median of {args.rounds}: {np.median(ratios):.2f} (wanted >= 1.5 on a CPU)")
    print(f"largest difference to the baseline's images: {largest_difference(made, expected)} of 255 levels")
    print(f"loops: {dict(sorted((n, loops.count(n)) for n in set(loops)))}")


if __name__ == "__main__":
    main()
