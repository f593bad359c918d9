"""CLIP as judge of whether an image shows what a text says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ezigen.config import ConfigurationError
from ezigen.models.location import find_weights, resolve_folder
from ezigen.models.stack import choose_placement, no_progress_bars


@dataclass(frozen=True, eq=False)
class TextImageEncoder:
    """A frozen CLIP with its own preprocessing."""

    network: Any
    tokenizer: Any
    processor: Any

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (B, D) of RGB pictures."""
        pixels = self.processor(list(images), return_tensors="pt").pixel_values
        features = self.network.get_image_features(pixel_values=pixels.to(self.network.device))
        return F.normalize(features.pooler_output, dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of texts, cut to CLIP's length (77 tokens)."""
        length = self.network.config.text_config.max_position_embeddings
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": length}
        tokens = self.tokenizer(list(texts), return_tensors="pt", **options).to(self.network.device)
        features = self.network.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return F.normalize(features.pooler_output, dim=-1)


def load_text_image_encoder(location: str, device: str = "auto") -> TextImageEncoder:
    """A CLIP model in fp32, frozen: "mini", a folder, or a hub id such as openai/clip-vit-base-patch32.

    Raises ConfigurationError when it is missing or not a CLIP model.
    """
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = resolve_folder(location, "clip")
    find_weights(folder, "clip")
    place, _ = choose_placement(device, "fp32")
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    try:
        with no_progress_bars():
            network: Any = CLIPModel.from_pretrained(folder, **options)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"CLIP {location}: {folder} does not load: {error}") from error
    return TextImageEncoder(network.requires_grad_(False).eval().to(place), tokenizer, processor)
