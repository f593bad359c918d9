"""The data sets of a run: their readers, what they offer, and what decides about the pairs made of them."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ezigen.config import PairConfig, PairInputs
from ezigen.pairs import RefusalReason
from tasks.datasets.coco import CocoReader
from tasks.datasets.defects import Defect
from tasks.datasets.units import Source, Unit
from tasks.datasets.youtube_vis import YoutubeVisReader
from tasks.storage import Locations, locate

_FORMAT = 2
"""Raised when the same settings would give other pairs than before."""

Setting = str | int | float | bool


@dataclass(frozen=True)
class DataSet:
    """One source that the inputs name."""

    source: Source
    wanted: int
    reader: CocoReader | YoutubeVisReader

    def read(
        self, config: PairConfig, refused: Counter[RefusalReason], on_defect: Callable[[Defect], None]
    ) -> Iterator[Unit]:
        """Its units; what is left out is counted, and what is wrong with the data set given to `on_defect`."""
        if isinstance(self.reader, CocoReader):
            return self.reader.read(config.coco, refused, on_defect)
        return self.reader.read(config.youtube_vis, refused, on_defect)


def open_data_sets(inputs: PairInputs, locations: Locations | None = None) -> list[DataSet]:
    """The sources that the inputs name and want pairs of. Raises ConfigurationError for one that is not there."""
    found: list[DataSet] = []
    if inputs.coco_uri and inputs.num_coco_pairs:
        reader = CocoReader(inputs.coco_uri, inputs.coco_split, locations)
        found.append(DataSet("coco", inputs.num_coco_pairs, reader))
    if inputs.youtube_vis_uri and inputs.num_youtube_vis_pairs:
        videos = YoutubeVisReader(inputs.youtube_vis_uri, locations)
        found.append(DataSet("youtube_vis", inputs.num_youtube_vis_pairs, videos))
    return found


def list_settings(inputs: PairInputs, config: PairConfig, data_sets: list[DataSet]) -> dict[str, Setting]:
    """Everything that decides about the pairs, by the name that an error can give it."""
    settings: dict[str, Setting] = {"format": _FORMAT, "inputs.num_coco_pairs": 0, "inputs.num_youtube_vis_pairs": 0}
    for data in data_sets:
        settings |= _of_source(inputs, data)
    settings["inputs.max_picture_side_px"] = inputs.max_picture_side_px
    settings["inputs.max_picture_pixels"] = inputs.max_picture_pixels
    return settings | dict(_flatten(config.model_dump(mode="json"), "pairs."))


def digest_settings(settings: Mapping[str, Setting]) -> str:
    """The identity of a plan: 32 hex digits."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _of_source(inputs: PairInputs, data: DataSet) -> dict[str, Setting]:
    if data.source == "coco":
        return {
            "inputs.coco_uri": locate(inputs.coco_uri).uri,
            "inputs.coco_split": inputs.coco_split,
            "inputs.num_coco_pairs": inputs.num_coco_pairs,
            "the annotations of COCO": data.reader.fingerprint(),
        }
    return {
        "inputs.youtube_vis_uri": locate(inputs.youtube_vis_uri).uri,
        "inputs.num_youtube_vis_pairs": inputs.num_youtube_vis_pairs,
        "the annotations of YouTube-VIS": data.reader.fingerprint(),
    }


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Setting]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
