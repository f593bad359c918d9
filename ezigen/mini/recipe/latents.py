"""Phase 2: composing and encoding samples once, so that the denoiser trains on latents alone.

Written shard by shard (`latents-<i>.safetensors`); a killed run goes on with the next missing shard, and several
processes can share the work.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.state import write_atomically
from ezigen.mini.recipe.vae import build_composer, to_tensor
from ezigen.mini.world.compose import Composer, Sample
from ezigen.mini.world.scenes import SCENE_NAMES

SHARD = 2_000
CHUNK = 100
TRUTH = ("variants", "scenes", "mirrored", "masks")


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, precision: str = "bfloat16") -> Tensor:
    """Scaled mean latents of pictures `n x 3 x h x w` in [-1, 1], as fp32."""
    dtype = getattr(torch, precision)
    with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
        latents: Tensor = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor
    return latents


def encode_shard(vae: AutoencoderKL, composer: Composer, config: RecipeConfig, shard: int) -> dict[str, Tensor]:
    """`SHARD` samples of the world: latents (fp16), and of each its truth (see `truth_of`)."""
    rng = np.random.default_rng((config.seed, 2, shard))
    latents, truths = [], []
    for _ in range(SHARD // CHUNK):
        samples = [composer.sample(rng, config.world.white_share) for _ in range(CHUNK)]
        pixels = to_tensor([s.pixels for s in samples]).to(config.device)
        latents.append(encode(vae, pixels, config.precision).half().cpu().contiguous())
        truths.append(truth_of(samples, composer))
    return {"latents": torch.cat(latents)} | {name: torch.cat([t[name] for t in truths]) for name in TRUTH}


def truth_of(samples: list[Sample], composer: Composer) -> dict[str, Tensor]:
    """What samples show: variant number, scene number (-1: alone on white), whether the product is mirrored, and its
    share of every latent pixel (`n x h/4 x w/4`, 0..255).
    """
    numbers = {variant.key: i for i, variant in enumerate(composer.variants)}
    masks = torch.from_numpy(np.stack([s.mask for s in samples])).float()[:, None]
    return {
        "variants": torch.tensor([numbers[s.variant.key] for s in samples], dtype=torch.int16),
        "scenes": torch.tensor([SCENE_NAMES.index(s.scene) if s.scene else -1 for s in samples], dtype=torch.int8),
        "mirrored": torch.tensor([s.pose.mirrored for s in samples]),
        "masks": avg_pool2d(masks, 4)[:, 0].round().byte(),
    }


def write_latents(config: RecipeConfig, first: int = 0, stride: int = 1) -> None:
    """Encode the missing shards number `first`, `first + stride`, ... of `config.unet.num_latents` samples."""
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device).eval()
    composer = build_composer(config)
    for shard in range(first, -(-config.unet.num_latents // SHARD), stride):
        path = config.work / "latents" / f"latents-{shard:04d}.safetensors"
        if not path.is_file():
            tensors = encode_shard(vae, composer, config, shard)
            write_atomically(path, lambda target, tensors=tensors: save_file(tensors, target))  # type: ignore[misc]
            print(f"latents shard {shard} of {-(-config.unet.num_latents // SHARD)}", flush=True)


class LatentStore:
    """The encoded samples found so far, in memory; `refresh` takes up shards written since."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known = folder, set[str]()
        self.latents, self.variants, self.scenes = torch.empty(0), torch.empty(0), torch.empty(0)
        self.mirrored, self.masks = torch.empty(0), torch.empty(0)
        self.look, self.order = torch.empty(0), torch.empty(0)
        self.refresh()

    def refresh(self) -> None:
        """Append shards that appeared in the folder."""
        fresh = [p for p in sorted(self.folder.glob("latents-*.safetensors")) if p.name not in self.known]
        shards = [load_file(path) for path in fresh]
        self.known |= {path.name for path in fresh}
        for name in ("latents", *TRUTH):
            parts = [getattr(self, name)] if len(getattr(self, name)) else []
            if shards:
                setattr(self, name, torch.cat([*parts, *(shard[name] for shard in shards)]))
        self.look = 2 * self.variants.long() + self.mirrored.long()
        self.order = self.look.argsort()

    def draw_companions(self, picked: Tensor, rng: np.random.Generator) -> Tensor:
        """For each sample of `picked` (n,) a random one of the same variant on the same side, perhaps itself."""
        ordered, wanted = self.look[self.order], self.look[picked]
        first, end = torch.searchsorted(ordered, wanted), torch.searchsorted(ordered, wanted, right=True)
        return self.order[torch.from_numpy(rng.integers(first.numpy(), end.numpy()))]

    def __len__(self) -> int:
        return len(self.latents)
