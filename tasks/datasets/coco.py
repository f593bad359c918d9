"""COCO 2014: pictures with the outlines of their objects and captions, read as units."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from ezigen.config import CocoSelection
from ezigen.pairs import RefusalReason
from tasks.datasets.units import Unit
from tasks.storage.locations import Locations


class CocoReader:
    """COCO 2014 in a folder: `train2014/` and `val2014/` beside `annotations/`. Picklable; opens nothing by itself."""

    def __init__(
        self, root_uri: str, split: Literal["train", "val", "both"] = "train", locations: Locations | None = None
    ) -> None:
        raise NotImplementedError

    @property
    def locations(self) -> Locations:
        """What pairs of this data set may open: its own folders. Use its `read_bytes` in `build_unit`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Changes when an annotation file does. Raises ConfigurationError if one is absent."""
        raise NotImplementedError

    def read(self, selection: CocoSelection, refused: Counter[RefusalReason] | None = None) -> Iterator[Unit]:
        """The pictures that have subjects, in the files' order; what is left out is counted in `refused`.

        Raises ConfigurationError if a file is absent or damaged.
        """
        raise NotImplementedError
