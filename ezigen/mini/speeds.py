"""What each saving of the sampler costs in quality, on the embedded model: `python -m ezigen.mini.speeds`.

Every variant makes the same images of held-out products through the engine. Measured are identity and text following
(see `ezigen.mini.evaluate`), floating-point operations per image, and CPU seconds of one thread. Differences to `exact`
are paired, with 95 % bootstrap intervals over products. What was measured before is read from the work folder.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from ezigen.config import LoopConfig, ModelConfig, SamplerConfig, embedded, released
from ezigen.config.presets import balanced, draft, foreground_only, guide_first, second_order, stop_by_latents
from ezigen.engine import Engine, EngineLimits, load_engine
from ezigen.metrics import Scorer, load_scorer
from ezigen.mini.evaluate import PRODUCTS, Case, interval, make_cases, measure
from ezigen.mini.held_out import judge_file
from ezigen.mini.recipe.judge import Bench
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.sampling import Sample

MEASURES = ("dino", "product", "clip_t", "scene_margin")
REFERENCE = "exact"
AUTHORS = "authors"
NUM_SLOTS = 4
TITLES = {
    "dino": "DINO",
    "product": "product right, points",
    "clip_t": "CLIP-T",
    "scene_margin": "scene margin, nats",
}
PRESETS_SHOWN = (REFERENCE, "balanced", "draft", AUTHORS)
PRESET_COLOUR, OTHER_COLOUR = "#1f6f50", "#8a8a86"


@dataclass(frozen=True)
class Variant:
    """A sampler, the precision of the networks, and UNet evaluations per image whose result nobody keeps."""

    sampler: SamplerConfig
    dtype: str = "fp32"
    num_wasted_calls: int = 0


@dataclass(frozen=True)
class Measured:
    """Of one variant: means per image, and every image's scores with its product, in the order of the cases."""

    gflop: float
    seconds: float
    num_unet_calls: float
    num_loops: float
    scores: tuple[dict[str, float], ...]
    products: tuple[str, ...]

    def values(self, name: str) -> np.ndarray:
        """One measure of every image."""
        return np.array([scores[name] for scores in self.scores])


@dataclass(frozen=True)
class Row:
    """Of one variant: costs per image, means with 95 % intervals, and paired differences to `exact`."""

    gflop: float
    seconds: float
    num_unet_calls: float
    num_loops: float
    mean: dict[str, tuple[float, float, float]]
    difference: dict[str, tuple[float, float, float]]


Table: TypeAlias = dict[str, Row]


def authors() -> Variant:
    """METHOD.md 8 with the embedded model's split, guidance and threshold: 50 steps of DDPM, 3 to 9 loops, and 100
    evaluations for diagnostic images that nobody keeps. The stop test is ours, and so is the single pass through the
    VAE per loop.
    """
    loops = LoopConfig(min_loops=3, max_loops=9, threshold=embedded().loops.threshold)
    changes = {"solver": "ddpm", "num_steps": 50, "negative_prompt": released().negative_prompt, "loops": loops}
    return Variant(embedded().model_copy(update=changes), num_wasted_calls=100)


def variants() -> dict[str, Variant]:
    """The reference, each saving alone, and the presets."""
    base = embedded()
    samplers = {
        REFERENCE: base,
        "balanced": balanced(base),
        "draft": draft(base),
        "second order": second_order(base),
        "guide first": guide_first(base),
        "foreground": foreground_only(base),
        "stop by latents": stop_by_latents(base),
    }
    made = {name: Variant(sampler) for name, sampler in samplers.items()}
    return {**made, AUTHORS: authors(), "bf16": Variant(base, dtype="bf16")}


def run(variant: Variant, cases: Sequence[Case], bench: Bench, scorer: Scorer) -> Measured:
    """Makes and measures its images."""
    engine = load_engine(ModelConfig(dtype=variant.dtype), variant.sampler, EngineLimits(num_slots=NUM_SLOTS))
    started = time.process_time()
    samples = _samples(engine, cases)
    seconds = time.process_time() - started
    counts = engine.counters.snapshot()
    flop = sum(value for name, value in counts.items() if name.startswith("flop."))
    calls = sum(sample.num_unet_calls for sample in samples) / len(cases)
    # A diagnostic image is drawn like any other one: its evaluations cost what those of a sketch do.
    wasted = variant.num_wasted_calls
    per_call = (
        counts["flop.sketch"] / counts["unet_calls.sketch"],
        counts["seconds.sketch"] / counts["unet_calls.sketch"],
    )
    outcomes = measure(bench, scorer, cases, {"": [sample.image for sample in samples]})
    return Measured(
        gflop=(flop / len(cases) + wasted * per_call[0]) / 1e9,
        seconds=seconds / len(cases) + wasted * per_call[1],
        num_unet_calls=calls + wasted,
        num_loops=float(np.mean([sample.num_loops for sample in samples])),
        scores=tuple(outcome.scores for outcome in outcomes),
        products=tuple(outcome.case.variant.key for outcome in outcomes),
    )


def _samples(engine: Engine, cases: Sequence[Case]) -> list[Sample]:
    made: dict[str, Sample] = {}
    for ended in engine.generate(replace(case.request, preview=False) for case in cases):
        if ended.sample is None:
            raise ended.error or RuntimeError(ended.key)
        made[ended.key] = ended.sample
        print(f"\r{len(made)} of {len(cases)}", end="", flush=True)
    print()
    return [made[case.request.key] for case in cases]


def measure_all(names: Sequence[str], num_seeds: int, work: Path) -> dict[str, Measured]:
    """Every named variant, from the work folder where it lies there."""
    cases = make_cases(PRODUCTS, SCENE_NAMES, num_seeds)
    bench, scorer = Bench(judge_file()), load_scorer(ModelConfig())
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        variant = variants()[name]
        file = work / f"{variant.sampler.digest()}-{variant.dtype}-{variant.num_wasted_calls}-{len(cases)}.json"
        if not file.exists():
            print(name, flush=True)
            file.write_text(json.dumps(asdict(run(variant, cases, bench, scorer))), "utf-8")
        values = json.loads(file.read_text("utf-8"))
        found[name] = Measured(**values | {key: tuple(values[key]) for key in ("scores", "products")})
    return found


def summarize(measured: dict[str, Measured]) -> Table:
    """Every variant's row."""
    reference = measured[REFERENCE]
    clusters = np.array(reference.products)
    return {
        name: Row(
            gflop=one.gflop,
            seconds=one.seconds,
            num_unet_calls=one.num_unet_calls,
            num_loops=one.num_loops,
            mean={key: interval(one.values(key), clusters) for key in MEASURES},
            difference={key: interval(one.values(key) - reference.values(key), clusters) for key in MEASURES},
        )
        for name, one in measured.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the figures and the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="48 images each")
    parser.add_argument("--variants", nargs="+", choices=list(variants()), default=list(variants()))
    parser.add_argument("--work", type=Path, default=Path("build/speeds"))
    parser.add_argument("--figures", type=Path, default=Path("docs/speed-figures.json"))
    parser.add_argument("--chart", type=Path, default=Path("docs/images/quality-cost.svg"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = list(dict.fromkeys([REFERENCE, *args.variants]))
    table = summarize(measure_all(names, args.seeds, args.work))
    figures = {"images": 48 * args.seeds, "variants": {name: asdict(row) for name, row in table.items()}}
    args.figures.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    args.chart.write_text(to_chart(table), "utf-8")
    print(to_markdown(table))


def to_markdown(table: Table) -> str:
    """One line per variant, the dearest first: costs, and paired differences to `exact` with intervals."""
    head = ("variant", "GFLOP", "against exact", "CPU s", "loops", *(f"{TITLES[key]}" for key in MEASURES))
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    reference = table[REFERENCE]
    for name, row in sorted(table.items(), key=lambda item: -item[1].gflop):
        shown = row.mean if name == REFERENCE else row.difference
        cells = (_with_interval(key, shown[key], signed=name != REFERENCE) for key in MEASURES)
        costs = (
            f"{row.gflop:.0f}",
            f"{reference.gflop / row.gflop:.2f}x",
            f"{row.seconds:.2f}",
            f"{row.num_loops:.2f}",
        )
        lines.append("| " + " | ".join((name, *costs, *cells)) + " |")
    return "\n".join(lines)


def _with_interval(key: str, values: tuple[float, float, float], *, signed: bool) -> str:
    scale, digits = (100, 0) if key == "product" else (1, 3 if key != "scene_margin" else 2)
    sign = "+" if signed else ""
    mean, low, high = (f"{value * scale:{sign}.{digits}f}" for value in values)
    return f"{mean} [{low}, {high}]"


def to_chart(table: Table) -> str:
    """Quality against cost as SVG: identity over GFLOP per image on a logarithmic axis, bars for 95 % intervals."""
    width, height, left, right, top, bottom = 760, 420, 64, 20, 20, 52
    costs = [row.gflop for row in table.values()]
    x_low, x_high = math.log(min(costs) * 0.85), math.log(max(costs) * 1.35)
    ends = [row.mean["dino"] for row in table.values()]
    y_low, y_high = min(low for _, low, _ in ends) - 0.02, max(high for _, _, high in ends) + 0.02

    def x(gflop: float) -> float:
        return left + (math.log(gflop) - x_low) / (x_high - x_low) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - (value - y_low) / (y_high - y_low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for value in np.arange(math.ceil(y_low * 20) / 20, y_high, 0.05):
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e4e4e0"/>'
        )
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555">{value:.2f}</text>')
    for gflop in (20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000):
        if x_low < math.log(gflop) < x_high:
            at = f'x="{x(gflop):.1f}" y="{height - bottom + 18}"'
            parts.append(f'<text {at} text-anchor="middle" fill="#555">{gflop}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 12}" text-anchor="middle">GFLOP per image (logarithmic)</text>')
    half_way = (top + height - bottom) / 2
    turned = f'transform="rotate(-90 16 {half_way})"'
    parts.append(f'<text x="16" y="{half_way}" text-anchor="middle" {turned}>identity: DINO to the product</text>')
    for name, row in table.items():
        mean, low, high = row.mean["dino"]
        colour = PRESET_COLOUR if name in PRESETS_SHOWN else OTHER_COLOUR
        centre = x(row.gflop)
        bar = f'x1="{centre:.1f}" x2="{centre:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"'
        parts.append(f'<line {bar} stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{centre:.1f}" cy="{y(mean):.1f}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{centre + 9:.1f}" y="{y(mean) + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
