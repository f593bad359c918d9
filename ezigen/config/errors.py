"""The closed list of reasons for which one item fails, and the two exceptions that carry bad input."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why an item has no image. The list is closed: dashboards, alarms and `ezigen results` rely on it."""

    ROW_INVALID = "row_invalid"
    DUPLICATE_ID = "duplicate_id"
    NOT_SUPPORTED = "not_supported"
    LOCATION_UNKNOWN_SCHEME = "location_unknown_scheme"
    LOCATION_DENIED = "location_denied"
    STORAGE_ERROR = "storage_error"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    MASK_MISMATCH = "mask_mismatch"
    FACE_MISSING = "face_missing"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    WORKER_DIED = "worker_died"
    GENERATION_FAILED = "generation_failed"


class ItemError(Exception):
    """One item cannot be done; every other item can. The message names the item's field and the remedy."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["ItemError"], tuple[ErrorCode, str]]:
        # The default rebuilds an exception from its args, which would lose the code between processes.
        return type(self), (self.code, self.message)


class ConfigurationError(ValueError):
    """The run as a whole cannot start: a setting, a model or a catalog is wrong. Says which and what to do."""
