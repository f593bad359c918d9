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
from ezigen.mini.evaluate import Case, interval, make_cases, measure
from ezigen.mini.recipe.judge import Bench
from ezigen.mini.truth import judge_file
from ezigen.mini.world.benchmarks import PRODUCTS
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
    """What the authors' published code does, with the embedded model's split, guidance and threshold.

    50 steps of DDPM, 3 to 9 loops, and 100 evaluations for diagnostic images that nobody keeps. The stop test is ours,
    and so is the single pass through the VAE per loop.
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


PANELS = (("dino", "DINO"), ("clip_t", "CLIP-T"))


def to_chart(table: Table) -> str:
    """Quality against cost as SVG, a line per variant, the cheapest first.

    On the left its GFLOP per image; then its paired differences to `exact` with bars for 95 % intervals. A bar that
    crosses the middle line is no difference that these images show.
    """
    rows = sorted(table.items(), key=lambda item: item[1].gflop)
    width, line, top = 860, 34, 62
    height = top + line * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_costs(rows, top, line, Panel(130, 250, 0.0, max(row.gflop for _, row in rows))),
    ]
    for number, (key, title) in enumerate(PANELS):
        reach = 1.1 * max(0.01, *(abs(end) for _, row in rows for end in row.difference[key]))
        panel = Panel(425 + 215 * number, 195, -reach, reach)
        parts += _differences(rows, key, title, top, line, panel)
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class Panel:
    """A horizontal axis: where it begins, how wide it is, and the values at its ends."""

    left: float
    width: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """The place of a value."""
        return self.left + (value - self.low) / (self.high - self.low) * self.width


def _costs(rows: Sequence[tuple[str, Row]], top: float, line: float, panel: Panel) -> list[str]:
    """Names, and a bar per variant."""
    parts = [f'<text x="{panel.left}" y="28" font-weight="bold">cost: GFLOP per image</text>']
    for number, (name, row) in enumerate(rows):
        y = top + line * number
        colour, end = _colour(name), panel.x(row.gflop)
        parts.append(f'<text x="{panel.left - 10}" y="{y + 5}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
        bar = f'x="{panel.left}" y="{y - 8}" width="{end - panel.left:.1f}" height="16"'
        parts.append(f'<rect {bar} fill="{colour}" opacity="0.75"/>')
        inside = row.gflop > panel.high / 2
        at = f'x="{end - 6 if inside else end + 6:.1f}" y="{y + 5}" text-anchor="{"end" if inside else "start"}"'
        parts.append(f'<text {at} fill="{"white" if inside else "#333"}">{row.gflop:.0f}</text>')
    return parts


def _differences(
    rows: Sequence[tuple[str, Row]], key: str, title: str, top: float, line: float, panel: Panel
) -> list[str]:
    """One measure: mean difference to `exact` and its interval."""
    bottom = top + line * len(rows) - 10
    middle = panel.x(0.0)
    parts = [
        f'<text x="{panel.left}" y="28" font-weight="bold">{escape(title)} against exact</text>',
        f'<line x1="{middle}" x2="{middle}" y1="{top - 18}" y2="{bottom}" stroke="#999" stroke-dasharray="3 3"/>',
    ]
    step = 10 ** math.floor(math.log10(panel.high))
    for value in np.arange(-math.floor(panel.high / step) * step, panel.high, step):
        if step * 3 < panel.high and round(value / step) % 2:
            continue
        shown = f"{value:+.2f}" if abs(value) > step / 2 else "0"
        parts.append(
            f'<text x="{panel.x(value):.1f}" y="{bottom + 20}" text-anchor="middle" fill="#555">{shown}</text>'
        )
    for number, (name, row) in enumerate(rows):
        y = top + line * number
        mean, low, high = row.difference[key]
        colour = _colour(name)
        ends = f'x1="{panel.x(low):.1f}" x2="{panel.x(high):.1f}" y1="{y}" y2="{y}"'
        parts.append(f'<line {ends} stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{panel.x(mean):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    return parts


def _colour(name: str) -> str:
    return PRESET_COLOUR if name in PRESETS_SHOWN else OTHER_COLOUR


if __name__ == "__main__":
    main()
