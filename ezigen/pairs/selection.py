"""Which objects and frames qualify (METHOD: Section 4.1 of the paper, the released code, AnyDoor's filters).

Pure functions: a predicate answers with the reason against, or None.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.random import Generator

from ezigen.config import CocoSelection, VideoSelection
from ezigen.pairs.masks import Mask, bounding_box, connected_share
from ezigen.pairs.refusal import RefusalReason


def check_object(area_px: float, is_crowd: bool, selection: CocoSelection) -> RefusalReason | None:
    """Whether an object of a COCO picture can be a subject: one thing, and not a tiny one."""
    if is_crowd:
        return RefusalReason.CROWD
    return None if area_px >= selection.min_area_px else RefusalReason.AREA_TOO_SMALL


def rank_objects(areas_px: Sequence[float], is_crowd: Sequence[bool], selection: CocoSelection) -> list[int]:
    """Indices of a picture's subjects, largest first, at most `max_objects`; of equal ones the earlier first.

    Of a picture with more objects that qualify than `max_objects` only the larger half remain (of 5 the largest 3).
    """
    fit = [i for i, (a, c) in enumerate(zip(areas_px, is_crowd, strict=True)) if check_object(a, c, selection) is None]
    fit.sort(key=lambda i: -areas_px[i])
    num_kept = len(fit) if len(fit) <= selection.max_objects else (len(fit) + 1) // 2
    return fit[: min(num_kept, selection.max_objects)]


def min_distance(num_frames: int, selection: VideoSelection) -> int:
    """The least distance of a pair's frames, counted in the frames that show the object; at least 1."""
    return max(1, int(num_frames * selection.min_distance_share))


def count_frame_pairs(num_frames: int, selection: VideoSelection) -> int:
    """How many distinct (start, other) there are; 0 if the object is in fewer than two frames."""
    num_starts = max(0, num_frames - min_distance(num_frames, selection))
    return num_starts * (num_starts + 1) // 2


def draw_frames(rng: Generator, num_frames: int, selection: VideoSelection) -> tuple[int, int]:
    """A start uniform in [0, L - L//8), and another frame uniform among those at least L//8 later.

    L = `num_frames`, at least 2, counts the frames that show the object; 1/8 is `min_distance_share`.
    """
    distance = min_distance(num_frames, selection)
    start = int(rng.integers(0, num_frames - distance))
    return start, int(rng.integers(start + distance, num_frames))


def distinct_frames(rng: Generator, num_frames: int, selection: VideoSelection) -> Iterator[tuple[int, int]]:
    """Every (start, other) once, in the order in which `draw_frames` would first draw them."""
    num_pairs, seen = count_frame_pairs(num_frames, selection), set[tuple[int, int]]()
    while 2 * len(seen) < num_pairs:
        drawn = draw_frames(rng, num_frames, selection)
        if drawn not in seen:
            seen.add(drawn)
            yield drawn
    yield from _remaining(rng, num_frames, seen, selection)


def _remaining(
    rng: Generator, num_frames: int, seen: set[tuple[int, int]], selection: VideoSelection
) -> Iterator[tuple[int, int]]:
    """What was not drawn yet, in an order of the same distribution as drawing on; that would take ever longer."""
    distance = min_distance(num_frames, selection)
    starts = range(max(0, num_frames - distance))
    rest = [(s, o) for s in starts for o in range(s + distance, num_frames) if (s, o) not in seen]
    # Exponential waiting times, rates as the probabilities are.
    waits = rng.exponential(size=len(rest)) * [num_frames - distance - start for start, _ in rest]
    yield from (rest[i] for i in np.argsort(waits, kind="stable"))


def check_subject_mask(mask: Mask, selection: VideoSelection) -> RefusalReason | None:
    """Whether a frame shows enough of the object, in one piece, to be its subject picture."""
    reason = check_share(mask, selection)
    if reason is not None:
        return reason
    box, (height, width) = bounding_box(mask), mask.shape
    share = selection.min_subject_box_share
    if box.width < width * share or box.height < height * share:
        return RefusalReason.SUBJECT_BOX_TOO_SMALL
    return None if connected_share(mask) >= selection.min_connected_share else RefusalReason.DISCONNECTED


def check_target_mask(mask: Mask, selection: VideoSelection) -> RefusalReason | None:
    """Whether a frame shows the object with enough of its surroundings to be a target."""
    reason = check_share(mask, selection)
    if reason is not None:
        return reason
    box, (height, width) = bounding_box(mask), mask.shape
    share = selection.max_target_box_share
    return RefusalReason.TARGET_BOX_TOO_LARGE if box.width > width * share or box.height > height * share else None


def check_frames(subject_mask: Mask, target_mask: Mask, selection: VideoSelection) -> RefusalReason | None:
    """Whether the object in one frame and the same in another make a pair."""
    return check_subject_mask(subject_mask, selection) or check_target_mask(target_mask, selection)


def check_share(mask: Mask, selection: VideoSelection) -> RefusalReason | None:
    """Whether the object covers neither too little nor too much of its frame."""
    area = int(mask.sum())
    if area == 0:
        return RefusalReason.MASK_EMPTY
    if area < mask.size * selection.min_mask_share:
        return RefusalReason.MASK_TOO_SMALL
    return RefusalReason.MASK_TOO_LARGE if area > mask.size * selection.max_mask_share else None
