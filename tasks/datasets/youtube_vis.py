"""YouTube-VIS in both of its layouts: videos with the masks of their objects, read as units."""

from collections import Counter
from collections.abc import Iterator

from ezigen.config import VideoSelection
from ezigen.pairs import RefusalReason
from tasks.datasets.units import Unit
from tasks.storage.locations import Locations


class YoutubeVisReader:
    """YouTube-VIS in a folder. Picklable; opens nothing by itself.

    The layout is detected by what is there: `instances.json` (or `train.json`) beside `JPEGImages/`, or else
    `meta.json` beside `JPEGImages/` and `Annotations/`. Where both are, `instances.json` wins.
    """

    def __init__(self, root_uri: str, locations: Locations | None = None) -> None:
        raise NotImplementedError

    @property
    def locations(self) -> Locations:
        """What pairs of this data set may open: its own folders. Use its `read_bytes` in `build_unit`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Changes when the annotation file does. Raises ConfigurationError if there is none."""
        raise NotImplementedError

    def read(self, selection: VideoSelection, refused: Counter[RefusalReason] | None = None) -> Iterator[Unit]:
        """The objects that are in at least two frames, in the file's order; others are counted in `refused`.

        Raises ConfigurationError if the file is absent or damaged.
        """
        raise NotImplementedError
