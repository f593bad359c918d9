"""When appearance transfer has converged (paper 3.3)."""

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ezigen.config import LoopConfig
from ezigen.sampling.request import StopReason


def patch_similarity(patches: Tensor, others: Tensor) -> Tensor:
    """How alike two images are, in [-1, 1]: cosine per patch token (B, N, D), mean over patches -> (B,)."""
    return F.cosine_similarity(patches, others, dim=-1).mean(dim=-1)


def latent_similarity(latents: Tensor, others: Tensor) -> Tensor:
    """How alike two images' latents (B, c, h, w) are, in [-1, 1]: cosine over channels, mean over positions -> (B,).

    Needs no decoding. Its values are lower than those of `patch_similarity` for the same two images.
    """
    return F.cosine_similarity(latents, others, dim=1).mean(dim=(1, 2))


def stop_reason(loops: LoopConfig, num_loops: int, similarity: float | None) -> StopReason | None:
    """Why an image is final after num_loops loops, or None when another loop follows.

    similarity: of the last two images; None after the first transfer, when there is nothing to compare.
    """
    if loops.stop == "fixed":
        return "fixed" if num_loops >= loops.num_loops else None
    if num_loops >= loops.min_loops and similarity is not None and similarity > loops.threshold:
        return "threshold"
    return "max_loops" if num_loops >= loops.max_loops else None
