"""Pictures inside a page: read where they lie, made small, and all encoded alike."""

import base64
import posixpath

from PIL import Image

from ezigen.config import CatalogInputs, ErrorCode, ItemError
from ezigen.images import decode_picture, encode_image
from tasks.catalog.results import ResultRow
from tasks.storage import Locations, OutputFolder
from tasks.storage.filesystems import describe_error

QUALITY = 82
PAGE_BYTES = 40_000_000
"""About how large a page may become before its pictures are made smaller."""
SIDES_PX = (512, 384, 256, 192)
_BYTES_PER_PIXEL = 0.25
"""Of a photograph as WebP in base64, generously."""


def read_stored(folder: OutputFolder, relative: str) -> bytes:
    """A file of a folder by its path within it. Raises ItemError(IMAGE_MISSING, LOCATION_DENIED or STORAGE_ERROR)."""
    path = posixpath.normpath(relative)
    if not relative or path.startswith(("/", "..")):
        raise ItemError(ErrorCode.LOCATION_DENIED, f"{relative!r} does not lie within {folder.root_uri}.")
    try:
        return folder.read(path)
    except FileNotFoundError as error:
        raise ItemError(ErrorCode.IMAGE_MISSING, f"{folder.uri(path)} does not exist.") from error
    except OSError as error:
        message = f"{folder.uri(path)} could not be read: {describe_error(error)}"
        raise ItemError(ErrorCode.STORAGE_ERROR, message) from error


def read_result_image(folder: OutputFolder, row: ResultRow) -> Image.Image:
    """The image of a done row, RGB. Raises ItemError if it is missing or no picture."""
    return decode_picture(read_stored(folder, row.image_uri or ""), min_side_px=1).rgb


def read_subject(uri: str, locations: Locations) -> Image.Image:
    """A subject's picture, RGB on white. Raises ItemError."""
    return decode_picture(locations.read_bytes(uri), min_side_px=1).rgb


def subject_locations(output: OutputFolder) -> Locations | None:
    """Where the run's subjects lie; None where run.json does not say."""
    record = output.read_run()
    if record is None or not record.inputs.get("catalog_uri"):
        return None
    names = ("catalog_uri", "output_uri", "allowed_roots")
    inputs = CatalogInputs(**{name: record.inputs[name] for name in names if name in record.inputs})
    return Locations.for_catalog(inputs, output.locations.storage_options)


def choose_side(num_images: int) -> int:
    """The largest of SIDES_PX with which so many images keep a page below about PAGE_BYTES, or else the smallest."""
    fitting = (side for side in SIDES_PX if num_images * side * side * _BYTES_PER_PIXEL <= PAGE_BYTES)
    return next(fitting, SIDES_PX[-1])


def shrunk(image: Image.Image, side_px: int) -> Image.Image:
    """The picture with no side above side_px; a small one as it is."""
    if max(image.size) <= side_px:
        return image
    small = image.copy()
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return small


def to_page_uri(image: Image.Image, quality: int = QUALITY) -> str:
    """A WebP of the pixels alone as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(encode_image(image, "webp", quality)).decode()
