"""What each error code means to the person who has to do something about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ezigen.config.errors import ErrorCode


@dataclass(frozen=True)
class Explanation:
    """A short title, why it happens and what to do, in words that need no knowledge of the code."""

    title: str
    reason: str
    remedy: str


EXPLANATIONS: Mapping[ErrorCode, Explanation] = MappingProxyType(
    {
        ErrorCode.ROW_INVALID: Explanation(
            "The catalog row is incomplete or malformed",
            "A required field is empty, too long, or not of the expected kind.",
            "Correct the field named in the message in the catalog, then run again.",
        ),
        ErrorCode.DUPLICATE_ID: Explanation(
            "The same item id occurs twice",
            "Two rows of the catalog share one id, so their results could not be told apart.",
            "Give every row its own id, then run again.",
        ),
        ErrorCode.NOT_SUPPORTED: Explanation(
            "The row asks for something that is not available",
            "A field of the row belongs to a feature that this version does not have.",
            "Leave the field named in the message empty, or wait for a version that supports it.",
        ),
        ErrorCode.LOCATION_UNKNOWN_SCHEME: Explanation(
            "The picture's address is of an unknown kind",
            "The address starts with a scheme that cannot be read.",
            "Use a path beside the catalog or an s3:// address.",
        ),
        ErrorCode.LOCATION_DENIED: Explanation(
            "The picture lies outside the permitted folders",
            "Pictures are read only from the folders that this run was allowed to open.",
            "Move the picture, or add its folder to the run's allowed roots.",
        ),
        ErrorCode.STORAGE_ERROR: Explanation(
            "The storage did not answer",
            "Reading or writing failed even after trying again.",
            "Check the storage and its permissions, then run again with failed items retried.",
        ),
        ErrorCode.IMAGE_MISSING: Explanation(
            "The picture file was not found",
            "There is no file at the address that the catalog gives.",
            "Upload the picture or correct its address, then run again with failed items retried.",
        ),
        ErrorCode.IMAGE_UNDECODABLE: Explanation(
            "The file is not a readable picture",
            "The file is cut off, damaged, or something else under a picture's name.",
            "Export the picture again as PNG, JPEG or WebP, then run again with failed items retried.",
        ),
        ErrorCode.IMAGE_TOO_LARGE: Explanation(
            "The picture is too large",
            "It has more bytes or pixels than this run accepts; it was refused before being opened.",
            "Scale the picture down, or raise the limits on picture size.",
        ),
        ErrorCode.IMAGE_TOO_SMALL: Explanation(
            "The picture is too small",
            "It has too few pixels to show a product.",
            "Use a larger picture of the product.",
        ),
        ErrorCode.MASK_MISMATCH: Explanation(
            "The mask does not fit the picture",
            "Mask and picture differ in size, or the mask marks nothing.",
            "Export the mask again at the picture's size.",
        ),
        ErrorCode.FACE_MISSING: Explanation(
            "The subject picture shows no face",
            "This run crops subject pictures to a face, and finds upright ones that look into the camera.",
            "Give a picture with such a face, or leave sampler.subject_crop none.",
        ),
        ErrorCode.OUT_OF_MEMORY: Explanation(
            "The worker ran out of memory",
            "The item did not fit into memory even on its own.",
            "Use fewer items per batch or workers with more memory, then run again with failed items retried.",
        ),
        ErrorCode.TIMED_OUT: Explanation(
            "The item took too long",
            "It was stopped at the time limit per item.",
            "Raise the time limit or use faster workers, then run again with failed items retried.",
        ),
        ErrorCode.WORKER_DIED: Explanation(
            "The item crashed its worker",
            "Its worker process ended twice while doing it, the second time with no other item at hand.",
            "Look at the picture named in the message: it triggers the crash.",
        ),
        ErrorCode.GENERATION_FAILED: Explanation(
            "The image could not be made",
            "The model stopped with an error while making this image.",
            "Read the message; if it does not name the cause, report it together with the item's id.",
        ),
    }
)

_UNKNOWN = Explanation(
    "The item failed for a reason unknown to this version",
    "The code was written by another version of the pipeline.",
    "Read the message, or make the report again with the version that ran.",
)


def explain(code: str) -> Explanation:
    """The explanation of an error code as stored in a row; a code from another version gets a general one."""
    try:
        return EXPLANATIONS[ErrorCode(code)]
    except ValueError:
        return _UNKNOWN
