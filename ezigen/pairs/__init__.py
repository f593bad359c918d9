"""Training pairs: which objects and frames qualify, their masks, and how their pictures are cut. Needs no torch."""

from ezigen.pairs.boxes import Box
from ezigen.pairs.crops import (
    PairPictures,
    cut_target,
    make_coco_pair,
    make_video_pair,
    pair_rng,
    square_around,
)
from ezigen.pairs.masks import Mask, bounding_box, connected_share, decode_segmentation, mask_of_value
from ezigen.pairs.refusal import SELECTION, Refusal, RefusalReason
from ezigen.pairs.selection import (
    check_frames,
    check_object,
    check_subject_mask,
    check_target_mask,
    count_frame_pairs,
    distinct_frames,
    draw_frames,
    min_distance,
    rank_objects,
)

__all__ = [
    "SELECTION",
    "Box",
    "Mask",
    "PairPictures",
    "Refusal",
    "RefusalReason",
    "bounding_box",
    "check_frames",
    "check_object",
    "check_subject_mask",
    "check_target_mask",
    "connected_share",
    "count_frame_pairs",
    "cut_target",
    "decode_segmentation",
    "distinct_frames",
    "draw_frames",
    "make_coco_pair",
    "make_video_pair",
    "mask_of_value",
    "min_distance",
    "pair_rng",
    "rank_objects",
    "square_around",
]
