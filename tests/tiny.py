"""A tiny Stable Diffusion stack of real classes and random weights, as folders in their own formats.

Nothing it draws means anything, but every part is the library's: what works with it works with the real thing.
`build_tiny_stack(folder)` writes model folders (unet, vae, text_encoder, tokenizer, scheduler, model_index.json) and
beside them adapter, clip and dinov2, the layout of the embedded model's weights. It takes about a second.
"""

import json
from pathlib import Path
from typing import Any

import torch

TEXT = """
a photo of the on in under with cup shoe chair lamp dog beach snow grass night sky brick wall table sea desert forest
studio red green blue yellow dark blur
"""
WORDS = TEXT.split()
IMAGE_SIZE_PX = 32
LATENT_SIZE = 8
XL_WIDTH_2 = 24
XL_POOLED = 20
CONTEXT_LENGTH = 16
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def build_tiny_stack(folder: Path | str, seed: int = 0) -> Path:
    """Write the whole tiny stack into the folder; equal seeds give equal weights."""
    folder = Path(folder)
    torch.manual_seed(seed)
    unet = tiny_unet()
    unet.save_pretrained(folder / "unet")
    _tiny_vae().save_pretrained(folder / "vae")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    _tiny_text_encoder(len(tokenizer)).save_pretrained(folder / "text_encoder")
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", _MODEL_INDEX)
    _save_tiny_adapter(unet, folder)
    _tiny_dinov2().save_pretrained(folder / "dinov2")
    _tiny_clip(len(tokenizer)).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    _write_json(folder / "clip" / "preprocessor_config.json", _CLIP_PREPROCESSING)
    return folder


def build_tiny_xl_stack(folder: Path | str, seed: int = 0) -> Path:
    """The same in the shape of Stable Diffusion XL: two text encoders, pooled texts, sizes, 1 or 2 blocks in a row."""
    folder = Path(folder)
    torch.manual_seed(seed)
    unet = tiny_xl_unet()
    unet.save_pretrained(folder / "unet")
    _tiny_vae().save_pretrained(folder / "vae")
    for suffix, padding in (("", "<|endoftext|>"), ("_2", "-")):
        tokenizer = tiny_tokenizer(pad_token=padding)
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        text_encoder = _tiny_projecting_encoder if suffix else _tiny_text_encoder
        text_encoder(len(tokenizer)).save_pretrained(folder / f"text_encoder{suffix}")
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(folder / "model_index.json", _XL_MODEL_INDEX)
    _save_tiny_adapter(unet, folder)
    _tiny_dinov2().save_pretrained(folder / "dinov2")
    return folder


def tiny_xl_unet(**changes: Any) -> Any:
    """A UNet as XL's in small: no attention in the first level, two blocks in a row in the second and the middle."""
    settings: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 32 + XL_WIDTH_2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": XL_POOLED + 6 * 8,
    }
    return tiny_unet(**(settings | changes))


def tiny_unet(**changes: Any) -> Any:
    """A UNet2DConditionModel with two resolutions, 7 transformer blocks and noise on every weight (0.8 M numbers)."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        **{
            "sample_size": LATENT_SIZE,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": (2, 4),
            "norm_num_groups": 8,
            "use_linear_projection": True,
            **changes,
        }
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return unet.eval()


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    """A CLIPTokenizer whose vocabulary is WORDS and the letters, so that unknown words are spelled."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
    merges: list[tuple[str, str]] = []
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:
        whole = f"{word}</w>"
        if len(word) == 1 or whole in vocabulary:
            continue
        prefix = word[0]
        for index, letter in enumerate(word[1:], start=1):
            part = f"{letter}</w>" if index == len(word) - 1 else letter
            if (prefix, part) not in merges:
                merges.append((prefix, part))
            prefix += part
            if prefix not in vocabulary:
                vocabulary.append(prefix)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=merges,
        model_max_length=CONTEXT_LENGTH,
        pad_token=pad_token,
    )


def _tiny_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=IMAGE_SIZE_PX,
        scaling_factor=0.5,
    )


def _tiny_text_encoder(vocab_size: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_text_config(vocab_size)))


def _tiny_projecting_encoder(vocab_size: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    changes = {"hidden_size": XL_WIDTH_2, "projection_dim": XL_POOLED, "hidden_act": "gelu"}
    return CLIPTextModelWithProjection(CLIPTextConfig(**(_text_config(vocab_size) | changes)))


def _tiny_clip(vocab_size: int) -> Any:
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE_PX,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=_text_config(vocab_size), vision_config=vision, projection_dim=16))


def _tiny_dinov2() -> Any:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=IMAGE_SIZE_PX,
        patch_size=8,
    )
    return Dinov2Model(config)


def _save_tiny_adapter(unet: Any, folder: Path) -> None:
    """Adapters away from their start, so that tests see their effect."""
    from ezigen.adapters import AdapterCard, attach_adapters, detach_adapters, save_adapter
    from ezigen.models import model_fingerprint

    adapters = attach_adapters(unet)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    card = AdapterCard(base_model="tiny", base_fingerprint=model_fingerprint(str(folder)), training={"steps": 0})
    save_adapter(adapters, folder / "adapter", card)
    detach_adapters(unet)


def _text_config(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_XL_MODEL_INDEX = _MODEL_INDEX | {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}
_CLIP_PREPROCESSING = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": IMAGE_SIZE_PX},
    "crop_size": {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
}
