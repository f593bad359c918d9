"""What a published adapter measures on products that nothing was trained on: <name>-<version>.json and .jpg.

The file says by which adapter, model and settings it was measured; it counts only for these. Needs no torch to be read.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ezigen.config import EvaluationConfig, ModelConfig, StackConfig
from tasks.adapters import PublishedAdapter, local_adapter
from tasks.inspection.sheet import Cell, draw_sheet, to_jpeg
from tasks.reports.wording import score_name
from tasks.storage import Locations, OutputFolder

if TYPE_CHECKING:
    from ezigen.mini.held_out import HeldOutResult

FORMAT_VERSION = 1
"""Raised when a change of the code makes other figures of the same adapter and settings."""

_ZOOM = 2
_NAMES = {"product": "product right", "scene": "scene right", "variant": "product and colour right"}


@dataclass(frozen=True)
class Evaluation:
    """Means of all images with the ends of their 95 % intervals, by measure."""

    adapter: str
    """NAME@VERSION."""
    digest: str
    """32 hex digits of what was measured and how."""
    num_images: int
    figures: Mapping[str, tuple[float, float, float]]

    def numbers(self) -> dict[str, float]:
        """The means by measure: scene, product and variant as shares of 1; clip_t, dino."""
        return {name: mean for name, (mean, _, _) in self.figures.items()}


def can_evaluate(model: StackConfig) -> bool:
    """Whether there are products and a judge for this model: for the embedded one alone."""
    return model.model == "mini"


def measure_title(name: str) -> str:
    """What people call a measure."""
    return _NAMES.get(name, score_name(name))


def evaluation_digest(adapter: PublishedAdapter, model: StackConfig, config: EvaluationConfig) -> str:
    """Of everything that decides the figures: the weights, the model with its judge, the settings."""
    from ezigen.mini.held_out import judge_file
    from ezigen.models import model_fingerprint

    content = {
        "version": FORMAT_VERSION,
        "adapter": adapter.card.weights_sha256,
        "model": model_fingerprint(model.model),
        "judge": hashlib.sha256(judge_file().read_bytes()).hexdigest(),
        "config": config.identity(),
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def read_evaluation(output: OutputFolder, adapter: PublishedAdapter, digest: str) -> Evaluation | None:
    """What was measured of this adapter in just this way; None if nothing was, or if the file cannot be read."""
    try:
        values = json.loads(output.read(evaluation_path(adapter, "json")))
        if values["digest"] != digest:
            return None
        stored = values["figures"]
        figures = {name: (float(mean), float(low), float(high)) for name, (mean, low, high) in stored.items()}
        return Evaluation(values["adapter"], digest, int(values["num_images"]), figures)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def evaluate_adapter(
    adapter: PublishedAdapter,
    model: StackConfig,
    config: EvaluationConfig,
    output: OutputFolder,
    *,
    digest: str,
    adapters_uri: str,
    locations: Locations | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Measures in this process and stores the sheet, then the figures. `tell` hears how many images are made."""
    from ezigen.mini.held_out import evaluate_held_out

    folder = local_adapter(adapter.reference, model.model, adapters_uri, locations)
    networks = ModelConfig(model=model.model, device=model.device, adapter=str(folder))
    result = evaluate_held_out(networks, config, tell)
    figures = {name: values for name, values in result.figures.items() if all(map(math.isfinite, values))}
    evaluation = Evaluation(adapter.reference, digest, len(result.outcomes), figures)
    output.write(evaluation_path(adapter, "jpg"), to_jpeg(draw_sheet_of(result, adapter.reference)))
    output.write(evaluation_path(adapter, "json"), _to_json(evaluation, adapter, config, result))
    return evaluation


def evaluation_path(adapter: PublishedAdapter, kind: str) -> str:
    """toys-v1.json, relative to the folder of evaluations."""
    return f"{adapter.name}-{adapter.version}.{kind}"


def draw_sheet_of(result: "HeldOutResult", title: str) -> Any:
    """A row per product: the subject, then its images with what the judge and DINO say of them."""
    cells, last = [], ""
    rows: dict[str, int] = {}
    for outcome in result.outcomes:
        key = outcome.case.variant.key
        rows[key] = rows.get(key, 0) + 1
        if key != last:
            last = key
            cells.append(Cell((outcome.case.subject.rgb,), (outcome.case.variant.product.name, key)))
        scores = outcome.scores
        right = "product right" if scores["product"] else "another product"
        said = f"{right}, {score_name('dino')} {scores['dino']:.2f}" if "dino" in scores else right
        cells.append(Cell((outcome.image,), (outcome.case.scene, said)))
    side = result.outcomes[0].image.width * _ZOOM
    return draw_sheet(cells, picture_px=side, num_columns=1 + max(rows.values()), title=title)


def _to_json(
    evaluation: Evaluation, adapter: PublishedAdapter, config: EvaluationConfig, result: "HeldOutResult"
) -> bytes:
    content = {
        "kind": "evaluation",
        "version": FORMAT_VERSION,
        "digest": evaluation.digest,
        "adapter": evaluation.adapter,
        "weights_sha256": adapter.card.weights_sha256,
        "settings": config.model_dump(mode="json"),
        "num_images": evaluation.num_images,
        "figures": {name: list(values) for name, values in evaluation.figures.items()},
        "images": [
            {
                "product": outcome.case.variant.key,
                "scene": outcome.case.scene,
                "seed": outcome.case.seed,
                "scores": outcome.scores,
            }
            for outcome in result.outcomes
        ],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
