"""Pictures that rows name: read and decoded, and kept for the rows that share them."""

import logging
import threading

from ezigen.config import ErrorCode, ItemError
from ezigen.engine.cache import Cache
from ezigen.images import Picture, decode_picture
from tasks.storage import Locations
from tasks.storage.filesystems import describe_error

logger = logging.getLogger(__name__)

MAX_KEPT_BYTES = 64 * 2**20
"""Some twenty decoded photographs of a megapixel: the rows of one product mostly come one after the other."""


class PictureReader:
    """Reads pictures by their locations and keeps those that were used last. Several threads may ask at once.

    Who replaces a picture while a run goes on cannot tell which of the two a row gets.
    """

    def __init__(
        self, locations: Locations, *, max_side_px: int, max_pixels: int, max_kept_bytes: int = MAX_KEPT_BYTES
    ) -> None:
        self._locations = locations
        self._max_side_px, self._max_pixels = max_side_px, max_pixels
        self._kept: Cache[str, tuple[bytes, Picture]] = Cache(max_kept_bytes)
        self._lock = threading.Lock()

    def read(self, uri: str) -> tuple[bytes, Picture]:
        """A file's bytes and its picture. Raises ItemError, with the location in its message; that is never kept."""
        with self._lock:
            found = self._kept.get(uri)
        if found is None:
            found = self._read(uri)
            with self._lock:
                self._kept.put(uri, found, _num_bytes(*found))
        return found

    def counts(self) -> dict[str, float]:
        """hits.pictures and misses.pictures: how often a picture was there, and how often it had to be read."""
        with self._lock:
            return {"hits.pictures": self._kept.hits, "misses.pictures": self._kept.misses}

    def _read(self, uri: str) -> tuple[bytes, Picture]:
        try:
            data = self._locations.read_bytes(uri)
            return data, decode_picture(data, max_side_px=self._max_side_px, max_pixels=self._max_pixels)
        except ItemError as error:
            raise ItemError(error.code, error.message if uri in error.message else f"{uri}: {error.message}") from error
        except Exception as error:
            logger.exception("reading %s failed in an unforeseen way", uri)
            raise ItemError(ErrorCode.STORAGE_ERROR, f"{uri}: {describe_error(error)}") from error


def _num_bytes(data: bytes, picture: Picture) -> int:
    num_pixels = picture.rgb.width * picture.rgb.height
    return len(data) + num_pixels * (4 if picture.mask is None else 5)  # Pillow keeps RGB in four bytes
