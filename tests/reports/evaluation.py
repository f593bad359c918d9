"""A synthetic evaluation: many subjects of different quality, pictures that are only colours."""

import base64
import io
from datetime import UTC, datetime, timedelta

import numpy as np
from PIL import Image

from tasks.evaluation.benchmarks import Benchmark, BenchmarkCase
from tasks.evaluation.paper import MODES, PaperTable
from tasks.evaluation.tables import ScoredImage, measure_table, worst_cases
from tasks.reports.evaluation_page import Closer, EvaluationPage, MissingImage, PageTable, WorstCase

SCENES = ("in the jungle", "on the beach", "with a city in the background", "on top of a purple rug in a forest")
MADE = (datetime(2026, 11, 24, 4, tzinfo=UTC), datetime(2026, 11, 24, 4, tzinfo=UTC) + timedelta(hours=5))
LEVELS = {
    "text_only": (0.36, 0.33),
    "full_injection": (0.76, 0.28),
    "decoupled": (0.55, 0.32),
    "iterative": (0.71, 0.317),
}


def make_benchmark(num_subjects: int, num_prompts: int = 4, subject: str = "subject", **changes) -> Benchmark:
    cases = [
        BenchmarkCase(
            case_id=f"{subject}{s}/p{p:02}/r0",
            subject_id=f"{subject}{s}",
            prompt_id=f"p{p:02}",
            subject_uris=("subject.png",),
            reference_uris=("subject.png",),
            subject_class=("backpack", "stuffed animal")[s % 2],
            prompt=f"a {('backpack', 'stuffed animal')[s % 2]} {SCENES[p % len(SCENES)]}",
            seed=p,
        )
        for s in range(num_subjects)
        for p in range(num_prompts)
    ]
    return Benchmark(
        **{"name": "dreambench", "kind": "generation", "cases": tuple(cases), "digest": "0b" * 16, **changes}
    )


def make_images(benchmark: Benchmark, table: PaperTable = MODES) -> list[ScoredImage]:
    """An image of every line and case: some subjects are hard, the lines differ as in LEVELS."""
    rng = np.random.default_rng(0)
    ease = {case.subject_id: rng.normal() for case in benchmark.cases}
    images = []
    for variant in table.variants:
        dino, clip_t = LEVELS.get(variant.name, (0.6, 0.3))
        for case in benchmark.cases:
            scores = {
                "dino": dino + 0.06 * ease[case.subject_id] + 0.05 * rng.normal(),
                "clip_t": clip_t + 0.01 * rng.normal(),
                "clip_i": 0.8 + 0.03 * rng.normal(),
                "seconds": 3 + rng.random(),
            }
            images.append(ScoredImage(variant.name, case.case_id, case.subject_id, case.prompt_id, scores))
    return images


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64), kind: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


def uri(colour: tuple[int, int, int]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture(colour)).decode()


def make_page(benchmark: Benchmark, table: PaperTable = MODES, missing: int = 0, **changes) -> EvaluationPage:
    """The page of a table, its last line looked at closely; the first line lacks `missing` images."""
    images = make_images(benchmark, table)
    first = table.variants[0]
    lost = tuple(
        MissingImage(first.title, image.case_id, f"image_undecodable: {image.case_id} is cut off.")
        for image in images[:missing]
    )
    last = table.variants[-1]
    own = tuple(image for image in images if image.variant == last.name)
    cases = {case.case_id: case for case in benchmark.cases}
    worst = {
        measure: tuple(
            WorstCase(image, cases[image.case_id], uri((40, 90, 200)), uri((200, 90, 20 * place)))
            for place, image in enumerate(worst_cases(own, measure, 8))
        )
        for measure in ("dino", "clip_t")
    }
    measured = measure_table(table, images[missing:], len(benchmark.cases))
    values = {
        "name": "toys@v3",
        "model": "mini",
        "adapter_fingerprint": "0123456789abcdef" * 4,
        "benchmarks": (benchmark,),
        "num_images": len(images),
        "tables": (PageTable(measured, picture((90, 200, 120), (760, 900))),),
        "closer": Closer(table.title, last.title, own, worst),
        "missing": lost,
        "made": MADE,
        "own_scale": True,
        **changes,
    }
    return EvaluationPage(**values)
