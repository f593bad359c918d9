"""The frozen networks: load them, run them, tell them apart.

Importing this package costs no torch, so that a plan can ask for a model's fingerprint; networks load at first use.
"""

from typing import TYPE_CHECKING

from ezigen.lazy import lazy_names
from ezigen.models.fingerprint import model_fingerprint
from ezigen.models.location import resolve_folder

if TYPE_CHECKING:
    from ezigen.models.blocks import transformer_blocks
    from ezigen.models.image_encoder import ImageEncoder, load_image_encoder
    from ezigen.models.pixels import to_image, to_pixels
    from ezigen.models.segmenter import Segmenter, load_segmenter
    from ezigen.models.stack import (
        Stack,
        decode_latents,
        encode_pictures,
        encode_posterior,
        encode_prompts,
        load_stack,
        tokenize_prompts,
    )
    from ezigen.models.text import TextCondition
    from ezigen.models.text_image_encoder import TextImageEncoder, load_text_image_encoder
    from ezigen.models.unet import call_unet

__all__ = [
    "ImageEncoder",
    "Segmenter",
    "Stack",
    "TextCondition",
    "TextImageEncoder",
    "call_unet",
    "decode_latents",
    "encode_pictures",
    "encode_posterior",
    "encode_prompts",
    "load_image_encoder",
    "load_segmenter",
    "load_stack",
    "load_text_image_encoder",
    "model_fingerprint",
    "resolve_folder",
    "to_image",
    "to_pixels",
    "tokenize_prompts",
    "transformer_blocks",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ImageEncoder": "image_encoder",
        "Segmenter": "segmenter",
        "Stack": "stack",
        "TextCondition": "text",
        "TextImageEncoder": "text_image_encoder",
        "call_unet": "unet",
        "decode_latents": "stack",
        "encode_pictures": "stack",
        "encode_posterior": "stack",
        "encode_prompts": "stack",
        "load_image_encoder": "image_encoder",
        "load_segmenter": "segmenter",
        "load_stack": "stack",
        "load_text_image_encoder": "text_image_encoder",
        "to_image": "pixels",
        "to_pixels": "pixels",
        "tokenize_prompts": "stack",
        "transformer_blocks": "blocks",
    },
)
