"""How well the embedded model edits: `python -m ezigen.mini.edits`.

Products that it never saw are put in the place of others, on the miniature DreamEditBench. Identity is measured by
DINO on the region of the mask alone (DINO-sub), of the source, which shows the other product, and of the edit. The
scores are those of the small DINOv2, comparable among themselves alone. Intervals are 95 % bootstrap intervals over
products. Also measured: what inversion and denoising lose of a source, beside what the VAE alone loses.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ezigen.config import SPEEDS, ModelConfig, SamplerConfig, embedded
from ezigen.diffusion import NoiseSource
from ezigen.images import FORMATS, Picture
from ezigen.images.canvas import mark_edit
from ezigen.metrics import Measurer, Shown, load_scorer
from ezigen.mini.evaluate import interval
from ezigen.mini.world.benchmarks import SIDE_PX, make_composer, write_dreamedit
from ezigen.mini.world.captions import describe
from ezigen.mini.world.scenes import SCENE_NAMES
from ezigen.models import Stack, decode_latents, encode_pictures, to_pixels
from ezigen.models.exceptional import encode_exceptional
from ezigen.sampling import Edit, Generator, Request, Sample, load_generator
from ezigen.sampling.denoiser import Conditions, Denoiser, plan_steps
from ezigen.sampling.editing import plan_inversion

PUBLISHED_DINO_SUB = 0.650
"""The paper's Table 2, with the real DINO on DreamEditBench."""


@dataclass(frozen=True)
class EditCase:
    """One subject to put into one source picture."""

    name: str
    subject: Image.Image
    request: Request

    @property
    def edit(self) -> Edit:
        """What is edited."""
        assert self.request.edit is not None
        return self.request.edit


def read_cases(folder: Path, *, boxes: bool = False) -> Iterator[EditCase]:
    """Every subject with every source of a DreamEditBench-like folder, see `write_dreamedit`. boxes: what may change is
    the whole box around the other product, not its outline.
    """
    for name, subject_class in json.loads((folder / "subjects.json").read_text("utf-8")).items():
        subject = Image.open(folder / name / "subject" / "00.jpg", formats=FORMATS).convert("RGB")
        for number, path in enumerate(sorted((folder / name / "source").glob("*.jpg"))):
            mask = Image.open(folder / name / "mask" / f"{path.stem}.png", formats=FORMATS).convert("L")
            if boxes:
                mask.paste(255, mask.getbbox())
            edit = Edit(Picture(Image.open(path, formats=FORMATS).convert("RGB")), mask)
            prompt = describe(subject_class, SCENE_NAMES[number % len(SCENE_NAMES)])
            key = f"{name}/{path.stem}"
            yield EditCase(
                name, subject, Request(key, prompt, (Picture(subject),), subject_class, seed=number, edit=edit)
            )


def write_benchmark(folder: Path, num_subjects: int, num_sources: int) -> None:
    """The miniature DreamEditBench of held-out products alone."""
    write_dreamedit(make_composer(), folder, num_subjects, num_sources)


def dino_sub(measurer: Measurer, image: Image.Image, mask: Image.Image, subject: Image.Image) -> float:
    """Cosine, in [-1, 1], of the region of the mask and the subject; see `ezigen.metrics.measures`."""
    return measurer.measure([Shown(image, "", (Picture(subject),), mask=mask)])[0]["dino_sub"]


def background_is_kept(case: EditCase, sample: Sample, reach_px: int = 4) -> bool:
    """Whether all pixels further from the mask than reach_px are those of the source."""
    assert case.edit.mask is not None
    marked = np.argwhere(np.asarray(case.edit.mask) > 0)
    changed = np.argwhere((np.asarray(sample.image) != np.asarray(case.edit.source.rgb)).any(-1))
    if not len(changed):
        return True
    distances = np.abs(changed[:, None] - marked[None]).max(-1).min(1)
    return bool(distances.max() <= reach_px)


@torch.no_grad()
def inversion_psnr(stack: Stack, sampler: SamplerConfig, cases: Sequence[EditCase]) -> dict[str, float]:
    """Mean PSNR, in dB, of sources after the VAE alone, and after inversion to the split and denoising back."""
    pixels = torch.stack([to_pixels(case.edit.source.rgb) for case in cases]).to(stack.device)
    source = encode_pictures(stack, pixels)
    steps = plan_steps(stack.schedule.timesteps(sampler.num_steps))[sampler.num_steps_before_edit :]
    unguided = sampler.model_copy(update={"guidance_scale": 1.0, "solver": "dpmpp_2m"})
    denoiser = Denoiser(stack, None, unguided, NoiseSource())
    text = encode_exceptional(stack, sampler.edit.exceptional_token).select([0] * len(cases))
    latents = source
    for done in denoiser.invert(source, text, plan_inversion(steps)):
        latents = done.latents
    noise_std = latents.std().item()
    for done in denoiser.run(latents, Conditions(text, text, (0,) * len(cases)), steps, None):
        latents = done.latents
    return {
        "psnr_vae": _psnr(decode_latents(stack, source), pixels),
        "psnr_inversion": _psnr(decode_latents(stack, latents), pixels),
        "inverted_std": noise_std,
    }


def _psnr(made: torch.Tensor, given: torch.Tensor) -> float:
    errors = ((made.clamp(-1, 1) - given) / 2).square().flatten(1).mean(1)
    return float((-10 * errors.log10()).mean())


def edit_all(generator: Generator, cases: Sequence[EditCase], batch: int = 8) -> list[Sample]:
    """The edits, in order."""
    made: list[Sample] = []
    for start in range(0, len(cases), batch):
        made += generator.generate([case.request for case in cases[start : start + batch]])
        print(f"{len(made)} of {len(cases)}", flush=True)
    return made


def measure(measurer: Measurer, cases: Sequence[EditCase], samples: Sequence[Sample]) -> dict[str, object]:
    """DINO-sub of sources, of edits and of their paired difference (mean, low, high), and the share of edits whose
    background is untouched.
    """
    masks = [case.edit.mask for case in cases if case.edit.mask is not None]
    pairs = list(zip(cases, masks, samples, strict=True))
    source = np.array([dino_sub(measurer, case.edit.source.rgb, mask, case.subject) for case, mask, _ in pairs])
    edit = np.array([dino_sub(measurer, sample.image, mask, case.subject) for case, mask, sample in pairs])
    first = np.array([dino_sub(measurer, sample.loops[0], mask, case.subject) for case, mask, sample in pairs])
    clusters = np.array([case.name for case in cases])
    return {
        "dino_sub_source": interval(source, clusters),
        "dino_sub_without_loops": interval(first, clusters),
        "dino_sub_edit": interval(edit, clusters),
        "dino_sub_gain": interval(edit - source, clusters),
        "background_kept": float(np.mean([background_is_kept(case, sample) for case, _, sample in pairs])),
        "mean_loops": float(np.mean([sample.num_loops for sample in samples])),
        "mean_unet_calls": float(np.mean([sample.num_unet_calls for sample in samples])),
    }


def contact_sheet(cases: Sequence[EditCase], samples: Sequence[Sample], path: Path, per_row: int = 2) -> None:
    """Subject, source with what is edited, and edit; per_row of them side by side."""
    cell, head = 2 * SIDE_PX + 4, 16
    titles = ["subject", "source and mask", "edit"] * per_row
    sheet = Image.new("RGB", (cell * len(titles), head + cell * -(-len(cases) // per_row)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * cell + 4, 2), title, fill="black")
    for number, (case, sample) in enumerate(zip(cases, samples, strict=True)):
        row, side = divmod(number, per_row)
        marked = mark_edit(case.edit.source.rgb, case.edit.mask, case.edit.box)
        for column, picture in enumerate((case.subject, marked, sample.image)):
            large = picture.resize((2 * SIDE_PX, 2 * SIDE_PX), Image.Resampling.BICUBIC)
            sheet.paste(large, ((3 * side + column) * cell, head + row * cell))
    sheet.save(path, quality=85)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ezigen.mini.edits", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapter", default="auto")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--sources", type=int, default=3)
    parser.add_argument("--boxes", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--speed", choices=list(SPEEDS), default="balanced")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figures", type=Path, default=Path("docs/mini-edits.json"))
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/mini-edits.webp"))
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Write the benchmark, edit, measure, print, write figures and contact sheet."""
    args = build_parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    sampler = SPEEDS[args.speed](embedded())
    generator = load_generator(ModelConfig(model=args.model, adapter=args.adapter), sampler)
    with tempfile.TemporaryDirectory(prefix="ezigen-edits-") as work:
        write_benchmark(Path(work), args.subjects, args.sources)
        cases = list(read_cases(Path(work), boxes=args.boxes))
    samples = edit_all(generator, cases)
    scorer = load_scorer(ModelConfig(model=args.model))
    if scorer.dino is None:
        raise SystemExit("DINO-sub needs the image encoder of this model; see the warning above")
    figures = measure(Measurer(None, scorer.dino), cases, samples) | inversion_psnr(generator.stack, sampler, cases)
    figures |= {"edits": len(cases), "subjects": args.subjects, "speed": args.speed, "boxes": args.boxes}
    figures["published_dino_sub"] = PUBLISHED_DINO_SUB
    for name, value in figures.items():
        print(f"{name}: {value}")
    for path in (args.figures, args.sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    args.figures.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    contact_sheet(cases, samples, args.sheet)


if __name__ == "__main__":
    main()
