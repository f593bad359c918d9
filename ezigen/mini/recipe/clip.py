"""Phase 5a: a small CLIP, trained to tell which caption of the batch belongs to which picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.pictures import build_composer, to_tensor
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.recipe.tokenizer import MAX_TOKENS, build_tokenizer
from ezigen.mini.world.captions import vocabulary_words
from ezigen.mini.world.compose import Composer

WIDTH, PATCH_PX = 128, 8
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def build_clip(config: RecipeConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of about 1.7 M weights for pictures of the world's side."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = (
        {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS, "num_hidden_layers": 2} | shared | marks
    )
    vision = {"image_size": config.world.side_px, "patch_size": PATCH_PX, "num_hidden_layers": 4} | shared
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def normalize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pictures in [-1, 1] as the network wants them."""
    shape = (1, 3, 1, 1)
    return (pixels * 0.5 + 0.5 - pixels.new_tensor(mean).reshape(shape)) / pixels.new_tensor(std).reshape(shape)


def same_captions(captions: list[str]) -> Tensor:
    """`n x n` bool: pairs off the diagonal whose captions are equal; they are no negatives."""
    equal = np.array(captions)[:, None] == np.array(captions)[None]
    return torch.from_numpy(equal & ~np.eye(len(captions), dtype=bool))


def contrastive_losses(
    model: CLIPModel, tokenizer: CLIPTokenizer, composer: Composer, config: RecipeConfig, start: int
) -> Iterator[Tensor]:
    """Endless symmetric contrastive losses."""
    rng = np.random.default_rng((config.seed, 5, start))
    dtype = getattr(torch, config.precision)
    while True:
        samples = [composer.sample(rng, 0.08) for _ in range(config.encoders.batch)]
        captions = [s.caption for s in samples]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(
            config.device
        )
        pixels = normalize(to_tensor([s.pixels for s in samples]).to(config.device), MEAN, STD)
        with torch.autocast(config.device, dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
        logits = logits.float().masked_fill(same_captions(captions).to(config.device), float("-inf"))
        labels = torch.arange(len(captions), device=config.device)
        yield (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def write_processor(folder: Path, kind: str, side_px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Write `preprocessor_config.json` for square pictures of `side_px`."""
    settings = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": side_px},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side_px, "width": side_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def train_clip(config: RecipeConfig) -> None:
    """Train (or finish training) the small CLIP and save it as `work/clip`."""
    torch.manual_seed(config.seed)
    folder = config.work / "clip"
    tokenizer = build_tokenizer(vocabulary_words(), folder)
    model = build_clip(config, tokenizer).to(config.device)  # type: ignore[arg-type]
    trainer = Trainer(
        "clip", {"clip": model}, config.encoders.lr, config.encoders.minutes, config.work, weight_decay=0.05
    )

    def save() -> None:
        model.save_pretrained(folder)
        write_processor(folder, "CLIPImageProcessor", config.world.side_px, MEAN, STD)

    losses = contrastive_losses(model, tokenizer, build_composer(config), config, trainer.step)
    trainer.run(losses, config.encoders.batch, save)
