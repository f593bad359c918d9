"""Phase 5b: a small DINOv2 network whose CLS token knows the product's identity and whose patch tokens know what they
show.

CLS: of two pictures of the same product in the same hue (other scene, other pose) each must find the other among the
batch, in which every product also occurs in a second hue, so that colour counts. Patches: each token must tell its
patch's mean colour and contrast, how much of it is product, and the scene.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, mse_loss, normalize
from transformers import Dinov2Config, Dinov2Model

from ezigen.mini.recipe.clip import normalize as normalize_pixels
from ezigen.mini.recipe.clip import write_processor
from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.pictures import build_composer, to_tensor
from ezigen.mini.recipe.state import Trainer
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.products import Variant
from ezigen.mini.world.scenes import SCENE_NAMES

WIDTH, PATCH_PX, TEMPERATURE = 128, 8, 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_dinov2(config: RecipeConfig) -> Dinov2Model:
    """An untrained vision transformer of about 0.8 M weights for pictures of the world's side."""
    settings = Dinov2Config(
        image_size=config.world.side_px,
        patch_size=PATCH_PX,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=4,
        layerscale_value=1.0,
    )
    return Dinov2Model(settings)


class Heads(nn.Module):
    """What the tokens are trained to tell; thrown away afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Linear(WIDTH, 7)
        self.scene = nn.Linear(WIDTH, len(SCENE_NAMES) + 1)


def patch_truth(pixels: Tensor, masks: Tensor) -> Tensor:
    """Per patch the mean (3) and deviation (3) of its colours and the product's share (1): `n x patches x 7`."""
    mean = avg_pool2d(pixels, PATCH_PX)
    deviation = (avg_pool2d(pixels**2, PATCH_PX) - mean**2).clamp(min=0).sqrt()
    return torch.cat([mean, 2 * deviation, avg_pool2d(masks, PATCH_PX)], dim=1).flatten(2).transpose(1, 2)


def draw_variants(composer: Composer, rng: np.random.Generator, count: int) -> list[Variant]:
    """`count` different variants, in pairs of neighbours in the list: mostly one product in two hues."""
    starts = rng.choice(len(composer.variants) - 1, count // 2, replace=False)
    numbers = sorted({int(n) for start in starts for n in (start, start + 1)})
    return [composer.variants[n] for n in numbers]


def draw_views(composer: Composer, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of `count` or a few less variants: pixels `2n x 3 x h x w`, masks `2n x 1 x h x w` in 0..1, scenes
    `2n`.
    """
    pixels, masks, scenes = [], [], []
    variants = draw_variants(composer, rng, count)
    for view in range(2):
        for variant in variants:
            number = int(rng.integers(len(SCENE_NAMES)))
            white = rng.random() < (0.4 if view == 0 else 0.1)
            picture, mask = composer.compose(rng, variant, None if white else SCENE_NAMES[number])
            pixels.append(picture)
            masks.append(mask)
            scenes.append(len(SCENE_NAMES) if white else number)
    return to_tensor(pixels), torch.from_numpy(np.stack(masks))[:, None].float() / 255, torch.tensor(scenes)


def view_losses(
    model: Dinov2Model, heads: Heads, composer: Composer, config: RecipeConfig, start: int
) -> Iterator[Tensor]:
    """Endless sums of the identity, patch and scene losses."""
    rng = np.random.default_rng((config.seed, 6, start))
    dtype = getattr(torch, config.precision)
    while True:
        pixels, masks, scenes = (t.to(config.device) for t in draw_views(composer, rng, config.encoders.batch))
        with torch.autocast(config.device, dtype, enabled=dtype != torch.float32):
            hidden = model(pixel_values=normalize_pixels(pixels, MEAN, STD)).last_hidden_state.float()
        first, second = normalize(hidden[:, 0], dim=-1).chunk(2)
        logits = first @ second.T / TEMPERATURE
        labels = torch.arange(len(first), device=logits.device)
        identity = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        patches = hidden[:, 1:]
        scene_logits = heads.scene(patches).flatten(0, 1)
        scene = cross_entropy(scene_logits, scenes.repeat_interleave(patches.shape[1]))
        yield identity + 4 * mse_loss(heads.colours(patches), patch_truth(pixels, masks)) + 0.3 * scene


def train_dinov2(config: RecipeConfig) -> None:
    """Train (or finish training) the small DINOv2 and save it as `work/dinov2`."""
    torch.manual_seed(config.seed)
    model = build_dinov2(config).to(config.device)  # type: ignore[arg-type]
    heads = Heads().to(config.device)
    modules: dict[str, nn.Module] = {"dinov2": model, "heads": heads}
    trainer = Trainer("dinov2", modules, config.encoders.lr, config.encoders.minutes, config.work, weight_decay=0.05)
    folder = config.work / "dinov2"

    def save() -> None:
        model.save_pretrained(folder)
        write_processor(folder, "BitImageProcessor", config.world.side_px, MEAN, STD)

    trainer.run(
        view_losses(model, heads, build_composer(config), config, trainer.step), config.encoders.batch * 2, save
    )
