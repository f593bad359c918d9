"""When appearance transfer has converged (paper 3.3)."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ezigen.config import LoopConfig
from ezigen.models.pixels import to_image
from ezigen.models.text_image_encoder import TextImageEncoder
from ezigen.sampling.request import StopReason


class StopEncoder(Protocol):
    """What the stop test sees of an image."""

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Tokens (B, N, D) of images (B, 3, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True, eq=False)
class GlobalEncoder:
    """CLIP's one vector per image as a single token: `patch_similarity` is then their cosine (the released code)."""

    clip: TextImageEncoder

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Unit vectors (B, 1, D) of the 8-bit pictures of images (B, 3, H, W) in [-1, 1]."""
        return self.clip.images([to_image(image) for image in images])[:, None]


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
