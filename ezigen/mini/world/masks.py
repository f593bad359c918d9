"""Masks as the data sets write them: run lengths (plain and compressed) and polygons. No dependency beyond numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Point = tuple[int, int]


def run_lengths(mask: Mask) -> list[int]:
    """COCO's counts of a mask `h x w`: lengths of runs of 0, 1, 0, ... down the columns, starting with zeros."""
    flat = mask.T.reshape(-1).astype(np.int8)
    changes = np.flatnonzero(np.diff(flat)) + 1
    borders = np.concatenate([[0], changes, [flat.size]])
    lengths = np.diff(borders).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def compress_runs(counts: list[int]) -> str:
    """COCO's text form of run lengths: differences to the run before last, five bits a character."""
    characters: list[str] = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            characters.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(characters)


def to_rle(mask: Mask, *, compressed: bool) -> dict[str, object]:
    """The run-length segmentation of a mask."""
    counts = run_lengths(mask)
    return {"size": list(mask.shape), "counts": compress_runs(counts) if compressed else counts}


def border_edges(mask: Mask) -> dict[Point, list[Point]]:
    """Directed pixel edges around a mask (inside on the right), keyed by their start, as (x, y) corners."""
    padded = np.pad(mask, 1)
    edges: dict[Point, list[Point]] = {}
    sides = (((0, -1), (0, 0), (1, 0)), ((1, 0), (1, 0), (1, 1)), ((0, 1), (1, 1), (0, 1)), ((-1, 0), (0, 1), (0, 0)))
    for (dx, dy), start, end in sides:
        shifted = np.roll(padded, (-dy, -dx), (0, 1))
        for y, x in np.argwhere(padded & ~shifted) - 1:
            edges.setdefault((int(x) + start[0], int(y) + start[1]), []).append((int(x) + end[0], int(y) + end[1]))
    return edges


def trace_loops(edges: dict[Point, list[Point]]) -> list[list[Point]]:
    """Closed loops made of all edges; straight runs are one edge."""
    loops: list[list[Point]] = []
    while edges:
        start = here = next(iter(edges))
        loop: list[Point] = []
        while here in edges:
            there = edges[here].pop()
            if not edges[here]:
                del edges[here]
            loop.append(here)
            here = there
        assert here == start
        loops.append(loop)
    return [drop_straight(loop) for loop in loops]


def drop_straight(loop: list[Point]) -> list[Point]:
    """The corners of a loop, without points on straight lines."""
    kept = []
    for before, here, after in zip([loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True):
        if (here[0] - before[0]) * (after[1] - here[1]) != (here[1] - before[1]) * (after[0] - here[0]):
            kept.append(here)
    return kept


def signed_area(loop: list[Point]) -> float:
    """Shoelace area; positive around the inside, negative around a hole (y grows downwards)."""
    x, y = np.array(loop).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def to_polygons(mask: Mask) -> list[list[float]]:
    """COCO's polygons of a mask, one flat x, y list per connected part; holes are filled."""
    loops = [loop for loop in trace_loops(border_edges(mask)) if signed_area(loop) > 0]
    return [[float(value) for point in loop for value in point] for loop in loops]


def bounding_box(mask: Mask) -> list[float]:
    """x, y, width, height of the visible part."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)]
