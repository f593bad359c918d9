"""What a vision transformer (DINO, DINOv2, the half of CLIP that sees) makes of images."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ezigen.config import ConfigurationError
from ezigen.models.location import find_weights, resolve_folder
from ezigen.models.stack import choose_placement, no_progress_bars

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
"""What the two kinds were trained with, where preprocessor_config.json does not say."""


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A frozen vision transformer with a CLS token, fed with whole square images (no crop)."""

    network: Any
    size_px: int
    mean: Tensor
    std: Tensor

    @property
    def width(self) -> int:
        """Channels D of a token."""
        return int(self.network.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    def to(self, device: torch.device) -> "ImageEncoder":
        """The same encoder, its network moved to a device."""
        return replace(self, network=self.network.to(device), mean=self.mean.to(device), std=self.std.to(device))

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Tokens of the patches, CLS excluded: (B, N, D) for images (B, 3, H, W) in [-1, 1]."""
        return self.tokens(images)[:, 1:]

    def cls(self, images: Tensor) -> Tensor:
        """The CLS token (B, D) of images (B, 3, H, W) in [-1, 1]."""
        return self.tokens(images)[:, 0]

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """CLS and patches: (B, 1 + N, D) in fp32, for images (B, 3, H, W) in [-1, 1]."""
        hidden: Tensor = self.network(pixel_values=self.prepare(images)).last_hidden_state
        return hidden.float()

    def prepare(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], resized and normalised as the network was trained."""
        pixels = images.to(self.mean.device, torch.float32).clamp(-1, 1) * 0.5 + 0.5
        size = (self.size_px, self.size_px)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return (pixels - self.mean) / self.std


def load_image_encoder(location: str, device: str = "auto", *, part: str = "dinov2") -> ImageEncoder:
    """A DINOv2 (or another transformers vision model with a CLS token first) in fp32, frozen; of a CLIP what sees.

    location: "mini" (its part), a folder, or a hub id such as facebook/dinov2-base. Images are resized to the crop
    size of its preprocessor_config.json (224 px for DINOv2), else to the size in its configuration. Raises
    ConfigurationError.
    """
    from transformers import AutoModel

    folder = resolve_folder(location, part)
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"image encoder {location}: config.json is missing in {folder}")
    find_weights(folder, "image_encoder")
    place, _ = choose_placement(device, "fp32")
    # Left to itself, transformers asks the terminal whether code in the folder may run.
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        with no_progress_bars():
            network = AutoModel.from_pretrained(folder, dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"image encoder {location}: {folder} does not load: {error}") from error
    network = getattr(network, "vision_model", network)  # the half of CLIP that sees
    network.requires_grad_(False).eval().to(place)
    preprocessing = _preprocessing(folder)
    mean, std = (torch.tensor(preprocessing[name], device=place).reshape(3, 1, 1) for name in _IMAGENET)
    crop = preprocessing.get("crop_size", network.config.image_size)
    size_px = int(crop["height"] if isinstance(crop, dict) else crop)
    return ImageEncoder(network, size_px, mean, std)


def _is_clip(folder: Path) -> bool:
    return str(json.loads((folder / "config.json").read_bytes()).get("model_type", "")).startswith("clip")


def _preprocessing(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return {**(_CLIP if _is_clip(folder) else _IMAGENET), **(json.loads(path.read_bytes()) if path.is_file() else {})}
