"""Which tokens of a picture its subject touches."""

from collections.abc import Sequence
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from ezigen.config import ConfigurationError
from ezigen.subject.foreground import pool_cells
from tasks.features.model_shape import BlockLayout


def finest_side(blocks: Sequence[BlockLayout]) -> int:
    """Side of the finest token grid: 64 for SD2.1-base. Raises ConfigurationError if a grid is not square."""
    for block in blocks:
        if isqrt(block.num_tokens) ** 2 != block.num_tokens:
            raise ConfigurationError(
                f"tokens foreground: {block.num_tokens} tokens of block {block.name} are no square grid; "
                "use tokens all for this model."
            )
    return isqrt(max(block.num_tokens for block in blocks))


def kept_tokens(cells: Tensor, blocks: Sequence[BlockLayout]) -> dict[str, Tensor]:
    """By block, which of its tokens (num_tokens,) bool are kept, from the finest grid's cells (side, side).

    Coarser grids follow from the finest one, so a writer and a reader that share it agree.
    """
    by_side = {side: pool_cells(cells, side).flatten() for side in {isqrt(block.num_tokens) for block in blocks}}
    return {block.name: by_side[isqrt(block.num_tokens)] for block in blocks}


def pack_cells(cells: Tensor) -> bytes:
    """One bit per cell in raster order, the first in the highest bit of its byte."""
    return np.packbits(cells.flatten().numpy()).tobytes()


def unpack_cells(data: bytes | memoryview, side: int) -> Tensor:
    """The reverse: cells (side, side) bool."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=side * side)
    return torch.from_numpy(bits.astype(np.bool_)).reshape(side, side)
