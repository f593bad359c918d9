"""How well the embedded model does on products it never saw: `python -m ezigen.mini.evaluate`.

Four modes (docs/mini.md) on held-out products x scenes x seeds. Text following and identity are measured by the
world's truth, through a judge that was trained on renders of the held-out products alone, and by the small CLIP and
DINOv2. Every mode gets the scene right nearly always, so text following is also measured by margins, which have
headroom. Intervals are 95 % bootstrap intervals over products.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw

from ezigen.config import LoopConfig, ModelConfig, SamplerConfig
from ezigen.images import Picture
from ezigen.metrics import Scorer, load_scorer, mean_interval
from ezigen.mini.recipe.judge import Bench
from ezigen.mini.truth import Truth, judge_file, judge_scores, margin
from ezigen.mini.world.benchmarks import PRODUCTS, SIDE_PX
from ezigen.mini.world.captions import describe
from ezigen.mini.world.compose import Composer, Pose
from ezigen.mini.world.products import HUE_SHIFTS, Variant, make_variant, select_products
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.models.text_image_encoder import TextImageEncoder
from ezigen.sampling import Generator, Request, load_generator

MODES = ("text_only", "full_injection", "decoupled", "iterative")
MEASURES = ("scene", "product", "variant", "clip_t", "dino", "face", "face_found", "scene_margin", "clip_margin")
BATCH, NUM_LOOPS = 16, 5
SUBJECT_TIMESTEPS: tuple[int | Literal["adaptive"], ...] = (100, 300, 500, 800, "adaptive")
"""Of the paper's Table 4, beside 1, which full injection uses anyway."""

PAPER_DINO = {
    "full_injection": 0.762,
    "t_sub 100": 0.725,
    "t_sub 300": 0.661,
    "t_sub 500": 0.598,
    "t_sub 800": 0.427,
    "t_sub adaptive": 0.615,
}
"""The paper's Table 4: DINO on DreamBench with full injection. Its scale is another one than that of the small DINOv2;
what compares is the order.
"""


@dataclass(frozen=True)
class Case:
    """One thing to make: a variant in a scene with a seed."""

    variant: Variant
    scene: str
    seed: int
    subject: Picture

    @property
    def prompt(self) -> str:
        """The prompt, with the class word: the product's own name was never trained."""
        return describe(self.variant.product.subject_class, self.scene)

    @property
    def request(self) -> Request:
        """The case as a request to the sampler."""
        key = f"{self.variant.key}/{self.scene}/{self.seed}"
        return Request(key, self.prompt, (self.subject,), self.variant.product.subject_class, seed=self.seed)


@dataclass(frozen=True)
class Outcome:
    """One image and what was measured on it."""

    case: Case
    mode: str
    image: Image.Image
    scores: dict[str, float]


def subject_picture(variant: Variant) -> Picture:
    """The product upright on white, as a shop shows it."""
    composer = Composer([variant], SIDE_PX, num_backgrounds=1)
    pose = Pose(0.84, 0.5, 0.92, 0.0, False, 1.0)
    pixels, mask = composer.compose(np.random.default_rng(0), variant, None, pose)
    return Picture(Image.fromarray(pixels), Image.fromarray(mask))


def make_cases(products: Sequence[str], scenes: Sequence[str], num_seeds: int) -> list[Case]:
    """Products (every other one in a turned hue) x scenes x seeds; a seed's noise is shared by no two products."""
    known = {p.name: p for p in select_products(held_out=True)}
    variants = [make_variant(known[name], HUE_SHIFTS[(2 * i) % 6] if i % 2 else 0) for i, name in enumerate(products)]
    pictures = [subject_picture(variant) for variant in variants]
    places = [[scenes[(i + j) % len(scenes)] for j in range(min(4, len(scenes)))] for i in range(len(variants))]
    return [
        Case(variant, scene, 1000 * i + seed, picture)
        for i, (variant, picture) in enumerate(zip(variants, pictures, strict=True))
        for scene in places[i]
        for seed in range(num_seeds)
    ]


def base_sampler(steps: int, guidance: float, split: float) -> SamplerConfig:
    """The sampler of all modes; the loops of the iterative one are fixed, so that every loop can be compared."""
    loops = LoopConfig(stop="fixed", num_loops=NUM_LOOPS)
    return SamplerConfig(num_steps=steps, guidance_scale=guidance, split_ratio=split, loops=loops)


def generate_all(generator: Generator, cases: Sequence[Case], tell: Callable[[str], None]) -> list[list[Image.Image]]:
    """Per case its images: the last one, or for the iterative mode one after the first transfer and after each loop."""
    made: list[list[Image.Image]] = []
    for start in range(0, len(cases), BATCH):
        samples = generator.generate([case.request for case in cases[start : start + BATCH]])
        made += [list(sample.loops) or [sample.image] for sample in samples]
        tell(f"{len(made)} of {len(cases)}")
    return made


def run_modes(cases: Sequence[Case], model: ModelConfig, sampler: SamplerConfig) -> dict[str, list[Image.Image]]:
    """Images per mode, and per loop as `loop 1`, `loop 2`, ...; decoupled is what the iterative mode has before its
    first loop.
    """
    images: dict[str, list[Image.Image]] = {}
    for mode in ("text_only", "full_injection", "iterative"):
        generator = load_generator(model, sampler.model_copy(update={"mode": mode}))
        made = generate_all(generator, cases, lambda text, mode=mode: print(f"{mode} {text}", flush=True))  # type: ignore[misc]
        images[mode] = [pictures[-1] for pictures in made]
        if mode == "iterative":
            images["decoupled"] = [pictures[0] for pictures in made]
            images |= {f"loop {n}": [pictures[n] for pictures in made] for n in range(1, NUM_LOOPS + 1)}
    return images


def sweep_subject_timesteps(
    cases: Sequence[Case], model: ModelConfig, sampler: SamplerConfig
) -> dict[str, list[Image.Image]]:
    """Images of full injection with the subject encoded at noisier timesteps, or at each step's (paper, Table 4)."""
    images = {}
    for t_sub in SUBJECT_TIMESTEPS:
        generator = load_generator(model, sampler.model_copy(update={"mode": "full_injection", "t_sub": t_sub}))
        name = f"t_sub {t_sub}"
        made = generate_all(generator, cases, lambda text, name=name: print(f"{name}: {text}", flush=True))  # type: ignore[misc]
        images[name] = [pictures[-1] for pictures in made]
    return images


def clip_margin(clip: TextImageEncoder, case: Case, image: Image.Image) -> float:
    """By how much the cosine of the image to its prompt exceeds the best one to the same prompt with another scene. All
    of these prompts name the class, so a recognisable product earns nothing.
    """
    prompts = [describe(case.variant.product.subject_class, scene) for scene in SCENE_NAMES]
    return margin((clip.images([image]) @ clip.texts(prompts).T)[0], case.scene)


def measure(bench: Bench, scorer: Scorer, cases: Sequence[Case], images: dict[str, list[Image.Image]]) -> list[Outcome]:
    """Every image with its scores."""
    outcomes = []
    for mode, pictures in images.items():
        for case, image in zip(cases, pictures, strict=True):
            truth = Truth(case.variant.product.name, case.variant.key, case.scene)
            scores = judge_scores(bench, image, truth) | scorer.score(image, case.prompt, [case.subject])
            if scorer.clip is not None:
                scores["clip_margin"] = clip_margin(scorer.clip, case, image)
            outcomes.append(Outcome(case, mode, image, scores))
    return outcomes


def interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval over products; of a single product the mean alone, three times."""
    found = mean_interval(values, clusters)
    return (found.mean, found.low, found.high) if found.clusters > 1 else (found.mean,) * 3


def summarize(outcomes: Sequence[Outcome]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Mode -> measure -> (mean, low, high)."""
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    for mode in dict.fromkeys(outcome.mode for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.mode == mode]
        clusters = np.array([row.case.variant.key for row in rows])
        present = [name for name in MEASURES if name in rows[0].scores]
        table[mode] = {name: interval(np.array([row.scores[name] for row in rows]), clusters) for name in present}
    return table


def contrast(outcomes: Sequence[Outcome], first: str, second: str, name: str) -> tuple[float, float, float]:
    """Mean and interval of the paired difference `first - second` of one measure."""
    values = {mode: np.array([o.scores[name] for o in outcomes if o.mode == mode]) for mode in (first, second)}
    clusters = np.array([o.case.variant.key for o in outcomes if o.mode == first])
    return interval(values[first] - values[second], clusters)


def to_markdown(table: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """The table, one line per mode (and loop), with intervals."""
    names = list(next(iter(table.values())))
    lines = ["| mode | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    order = [*MODES, *(mode for mode in table if mode not in MODES)]
    for mode in order:
        cells = (f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in table[mode].values())
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def beside_the_paper(table: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    """The sweep of t_sub in our table, DINO and variant, with the paper's DINO beside it; rows that were made."""
    lines = ["| t_sub | dino | variant | paper's DINO |", "|---|---|---|---|"]
    for mode, published in PAPER_DINO.items():
        if mode in table:
            ours = (f"{table[mode][name][0]:.3f}" if name in table[mode] else "-" for name in ("dino", "variant"))
            name = mode.removeprefix("t_sub ") if mode.startswith("t_sub") else "1"
            lines.append(f"| {name} | {' | '.join(ours)} | {published:.3f} |")
    return "\n".join(lines)


def contact_sheet(outcomes: Sequence[Outcome], path: Path, per_product: int = 2, zoom: int = 2) -> None:
    """Per row one product twice: the subject, then the four modes, in two of its scenes."""
    cell, head = SIDE_PX * zoom + 4, 16
    found = {(o.case.request.key, o.mode): o for o in outcomes}
    cases: dict[str, list[Case]] = {}
    for outcome in outcomes:
        if outcome.mode == MODES[0] and outcome.case.seed % 1000 == 0:
            cases.setdefault(outcome.case.variant.key, []).append(outcome.case)
    columns = ["subject", *MODES] * per_product
    sheet = Image.new("RGB", (cell * len(columns), cell * len(cases) + head), "white")
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(columns):
        draw.text((number * cell + 4, 2), title, fill="black")
    for row, chosen in enumerate(cases.values()):
        pictures = []
        for case in chosen[:per_product]:
            pictures += [case.subject.rgb, *(found[case.request.key, mode].image for mode in MODES)]
        for column, picture in enumerate(pictures):
            large = picture.resize((SIDE_PX * zoom, SIDE_PX * zoom), Image.Resampling.BICUBIC)
            sheet.paste(large, (column * cell, head + row * cell))
    sheet.save(path, quality=85)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ezigen.mini.evaluate", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapter", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--products", type=int, default=len(PRODUCTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--split", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--t-sub-sweep", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--judge", type=Path, default=judge_file())
    parser.add_argument("--figures", type=Path, default=Path("docs/mini-figures.json"))
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/mini-modes.webp"))
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Generate, measure, print the table, write figures and contact sheet."""
    args = build_parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    model = ModelConfig(model=args.model, adapter=args.adapter, device=args.device, dtype=args.dtype)
    cases = make_cases(PRODUCTS[: args.products], SCENE_NAMES, args.seeds)
    sampler = base_sampler(args.steps, args.guidance, args.split)
    images = run_modes(cases, model, sampler)
    if args.t_sub_sweep:
        images |= sweep_subject_timesteps(cases, model, sampler)
    outcomes = measure(Bench(args.judge), load_scorer(ModelConfig(model=args.model)), cases, images)
    table = summarize(outcomes)
    print(to_markdown(table))
    if args.t_sub_sweep:
        print(beside_the_paper(table))
    gains = {
        f"{first} - {second}, {name}": contrast(outcomes, first, second, name)
        for first, second in (("iterative", "decoupled"), ("text_only", "full_injection"), ("text_only", "iterative"))
        for name in table["iterative"]
    }
    settings = {name: getattr(args, name) for name in ("products", "seeds", "steps", "guidance", "split")}
    settings |= {"images_per_mode": len(cases), "loops": NUM_LOOPS}
    for path in (args.figures, args.sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    figures = {"settings": settings, "mean_low_high": table, "paired": gains}
    args.figures.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    contact_sheet(outcomes, args.sheet)


if __name__ == "__main__":
    main()
