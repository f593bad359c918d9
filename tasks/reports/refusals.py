"""What each reason for refusing a candidate means to the person who wonders where the pairs are."""

from collections.abc import Mapping
from types import MappingProxyType

from ezigen.pairs import RefusalReason
from tasks.reports.remedies import Explanation

_WRONG_DATA = "Restore the file from the data set's own archive. The pairs that are built do not need it."
_WRONG_NOTES = "The annotation is wrong as it stands; others of the same picture are used."
_CHOSEN = "This is as chosen; the selection's settings change it, for a new output."

REFUSALS: Mapping[RefusalReason, Explanation] = MappingProxyType(
    {
        RefusalReason.PICTURE_MISSING: Explanation(
            "The picture is missing", "The annotations name a file that is not there.", _WRONG_DATA
        ),
        RefusalReason.PICTURE_UNDECODABLE: Explanation(
            "The picture is damaged", "Its file is cut off, or is no picture.", _WRONG_DATA
        ),
        RefusalReason.PICTURE_TOO_LARGE: Explanation(
            "The picture is too large",
            "It has more pixels than are decoded.",
            "Raise max_picture_side_px or max_picture_pixels, for a new output.",
        ),
        RefusalReason.PICTURE_TOO_SMALL: Explanation(
            "The picture is too small", "Nothing can be cut from it.", _WRONG_DATA
        ),
        RefusalReason.MASK_MISSING: Explanation(
            "The mask is missing", "There is no outline, or no mask file.", _WRONG_DATA
        ),
        RefusalReason.MASK_INVALID: Explanation(
            "The mask cannot be read", "Its polygons, run lengths or file are malformed.", _WRONG_NOTES
        ),
        RefusalReason.MASK_MISMATCH: Explanation(
            "The mask does not fit the picture", "It was drawn for a picture of another size.", _WRONG_NOTES
        ),
        RefusalReason.MASK_EMPTY: Explanation("The mask is empty", "It covers no pixel.", _WRONG_NOTES),
        RefusalReason.ANNOTATION_INVALID: Explanation(
            "The annotation is malformed", "A field is missing or of the wrong kind.", _WRONG_NOTES
        ),
        RefusalReason.CLASS_UNKNOWN: Explanation(
            "The class is not listed", "The annotation names a category that the file does not list.", _WRONG_NOTES
        ),
        RefusalReason.DUPLICATE_ID: Explanation(
            "The id occurs twice", "The first annotation with the id is used.", _WRONG_NOTES
        ),
        RefusalReason.NO_CAPTION: Explanation(
            "The picture has no caption", "Nothing says what the target shows.", "Check the captions file."
        ),
        RefusalReason.LOCATION_DENIED: Explanation(
            "The file may not be read",
            "It lies outside the data set's folder, or access was refused.",
            "Check the paths in the annotations, the permissions and the keys.",
        ),
        RefusalReason.STORAGE_ERROR: Explanation(
            "Storage failed", "Reading failed several times.", "Build into a new output once storage is well again."
        ),
        RefusalReason.CROWD: Explanation("A group, not an object", "COCO marks it as a crowd.", _CHOSEN),
        RefusalReason.AREA_TOO_SMALL: Explanation("The object is too small", "Its area is below min_area_px.", _CHOSEN),
        RefusalReason.NOT_RANKED: Explanation(
            "Smaller than others in its picture", "Of many objects only the largest are used.", _CHOSEN
        ),
        RefusalReason.TOO_FEW_FRAMES: Explanation(
            "Seen in too few frames", "An object needs two frames to make a pair.", _CHOSEN
        ),
        RefusalReason.DISCONNECTED: Explanation(
            "The object is in pieces", "Something stands before it, or it leaves the frame.", _CHOSEN
        ),
        RefusalReason.MASK_TOO_SMALL: Explanation("Too small in the frame", "It covers too little of it.", _CHOSEN),
        RefusalReason.MASK_TOO_LARGE: Explanation("Too large in the frame", "It covers too much of it.", _CHOSEN),
        RefusalReason.SUBJECT_BOX_TOO_SMALL: Explanation(
            "The subject's box is too small", "Cut out, it would be a blur.", _CHOSEN
        ),
        RefusalReason.TARGET_BOX_TOO_LARGE: Explanation(
            "The target's box is too large", "There would be no surroundings.", _CHOSEN
        ),
    }
)


def explain_refusal(reason: str) -> Explanation:
    """What a reason means; one that another version wrote is shown by its own name."""
    try:
        return REFUSALS[RefusalReason(reason)]
    except ValueError:
        return Explanation(reason.replace("_", " ").capitalize(), "", "")
