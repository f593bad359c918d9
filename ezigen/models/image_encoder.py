"""DINOv2 as judge of whether two images show the same thing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ezigen.config import ConfigurationError
from ezigen.models.location import find_weights, resolve_folder
from ezigen.models.stack import choose_placement, no_progress_bars

_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A frozen vision transformer with a CLS token, fed with whole square images (no crop)."""

    network: Any
    size_px: int
    mean: Tensor
    std: Tensor

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


def load_image_encoder(location: str, device: str = "auto") -> ImageEncoder:
    """A DINOv2 (or another transformers vision model with a CLS token first) in fp32, frozen.

    location: "mini", a folder, or a hub id such as facebook/dinov2-base. Images are resized to the crop size of its
    preprocessor_config.json (224 px for DINOv2), else to the size in its configuration. Raises ConfigurationError.
    """
    from transformers import AutoModel

    folder = resolve_folder(location, "dinov2")
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"image encoder {location}: config.json is missing in {folder}")
    find_weights(folder, "image_encoder")
    place, _ = choose_placement(device, "fp32")
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    try:
        with no_progress_bars():
            network = AutoModel.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"image encoder {location}: {folder} does not load: {error}") from error
    network.requires_grad_(False).eval().to(place)
    preprocessing = _preprocessing(folder)
    mean, std = (torch.tensor(preprocessing[name], device=place).reshape(3, 1, 1) for name in _IMAGENET)
    size_px = int(preprocessing.get("crop_size", {}).get("height", network.config.image_size))
    return ImageEncoder(network, size_px, mean, std)


def _preprocessing(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return {**_IMAGENET, **(json.loads(path.read_bytes()) if path.is_file() else {})}
