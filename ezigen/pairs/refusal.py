"""The closed list of reasons for which something becomes no pair."""

from enum import StrEnum


class RefusalReason(StrEnum):
    """Why a candidate is no pair. The list is closed: cards, tables and alarms rely on it."""

    # What the data set lacks or has wrong.
    PICTURE_MISSING = "picture_missing"
    PICTURE_UNDECODABLE = "picture_undecodable"
    PICTURE_TOO_LARGE = "picture_too_large"
    PICTURE_TOO_SMALL = "picture_too_small"
    MASK_MISSING = "mask_missing"
    MASK_INVALID = "mask_invalid"
    MASK_MISMATCH = "mask_mismatch"
    MASK_EMPTY = "mask_empty"
    ANNOTATION_INVALID = "annotation_invalid"
    CLASS_UNKNOWN = "class_unknown"
    DUPLICATE_ID = "duplicate_id"
    NO_CAPTION = "no_caption"
    LOCATION_DENIED = "location_denied"
    STORAGE_ERROR = "storage_error"
    # What the selection leaves out (METHOD, Section 5).
    CROWD = "crowd"
    AREA_TOO_SMALL = "area_too_small"
    NOT_RANKED = "not_ranked"
    TOO_FEW_FRAMES = "too_few_frames"
    DISCONNECTED = "disconnected"
    MASK_TOO_SMALL = "mask_too_small"
    MASK_TOO_LARGE = "mask_too_large"
    SUBJECT_BOX_TOO_SMALL = "subject_box_too_small"
    TARGET_BOX_TOO_LARGE = "target_box_too_large"


SELECTION = frozenset(
    {
        RefusalReason.CROWD,
        RefusalReason.AREA_TOO_SMALL,
        RefusalReason.NOT_RANKED,
        RefusalReason.TOO_FEW_FRAMES,
        RefusalReason.DISCONNECTED,
        RefusalReason.MASK_TOO_SMALL,
        RefusalReason.MASK_TOO_LARGE,
        RefusalReason.SUBJECT_BOX_TOO_SMALL,
        RefusalReason.TARGET_BOX_TOO_LARGE,
    }
)
"""Reasons that are nothing wrong with the data set."""


class Refusal(Exception):  # noqa: N818 - no error of the program: one candidate among many is left out
    """One candidate cannot become a pair; every other one can. The message names what is wrong with it."""

    def __init__(self, reason: RefusalReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type["Refusal"], tuple[RefusalReason, str]]:
        # The default rebuilds an exception from its args, which would lose the reason between processes.
        return type(self), (self.reason, self.message)
