"""Phase 2: composing and encoding samples once, so that the denoiser trains on latents alone.

Written shard by shard (`latents-<i>.safetensors`); a killed run goes on with the next missing shard, and several
processes can share the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from ezigen.mini.recipe.config import RecipeConfig
from ezigen.mini.recipe.pictures import build_composer, to_signed
from ezigen.mini.recipe.state import write_atomically
from ezigen.mini.recipe.tokenizer import build_tokenizer
from ezigen.mini.recipe.workers import spread
from ezigen.mini.world.captions import random_caption, vocabulary_words
from ezigen.mini.world.compose import Composer
from ezigen.mini.world.scenes import SCENE_NAMES

SHARD = 2_000
CHUNK = 500
TRUTH = ("variants", "scenes", "mirrored", "masks", "captions")


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor, precision: str = "bfloat16") -> Tensor:
    """Scaled mean latents of pictures `n x 3 x h x w` in [-1, 1], as fp32."""
    dtype = getattr(torch, precision)
    with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
        latents: Tensor = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor
    return latents


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids of captions, padded: `n x MAX_TOKENS`, int16."""
    ids: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.to(torch.int16)


@dataclass(frozen=True)
class Shard:
    """`SHARD` composed samples, before any network: made in a process without torch's threads.

    pixels: n x h x w x 3 bytes. variants, scenes: numbers; scene -1 where the product is alone on white. mirrored:
    whether it is. masks: the product's share of every latent pixel (n x h/4 x w/4, 0..255). captions:
    `config.unet.num_captions` of each, one after the other.
    """

    pixels: NDArray[np.uint8]
    variants: NDArray[np.int16]
    scenes: NDArray[np.int8]
    mirrored: NDArray[np.bool_]
    masks: NDArray[np.uint8]
    captions: list[str]


def compose_shard(composer: Composer, config: RecipeConfig, shard: int) -> Shard:
    """Samples of the world, with their truth."""
    rng = np.random.default_rng((config.seed, 2, shard))
    numbers = {variant.key: i for i, variant in enumerate(composer.variants)}
    samples = [composer.sample(rng, config.world.white_share) for _ in range(SHARD)]
    captions = [
        random_caption(rng, s.variant.product.name, s.variant.product.subject_class, s.variant.hue_word, s.scene)
        for s in samples
        for _ in range(config.unet.num_captions)
    ]
    side = config.world.side_px // 4
    masks = np.stack([s.mask for s in samples]).reshape(SHARD, side, 4, side, 4).mean((2, 4))
    return Shard(
        pixels=np.stack([s.pixels for s in samples]),
        variants=np.array([numbers[s.variant.key] for s in samples], np.int16),
        scenes=np.array([SCENE_NAMES.index(s.scene) if s.scene else -1 for s in samples], np.int8),
        mirrored=np.array([s.pose.mirrored for s in samples]),
        masks=masks.round().astype(np.uint8),
        captions=captions,
    )


def to_tensors(shard: Shard, vae: AutoencoderKL, tokenizer: CLIPTokenizer, config: RecipeConfig) -> dict[str, Tensor]:
    """What is stored of a shard: latents in fp16, and the truth; captions as token ids (n x captions x MAX_TOKENS)."""
    ids = token_ids(tokenizer, shard.captions)
    return {
        "latents": encode_all(vae, torch.from_numpy(shard.pixels), config),
        "captions": ids.reshape(len(shard.pixels), config.unet.num_captions, -1).contiguous(),
        **{name: torch.from_numpy(getattr(shard, name)) for name in ("variants", "scenes", "mirrored", "masks")},
    }


def encode_all(vae: AutoencoderKL, pixels: Tensor, config: RecipeConfig) -> Tensor:
    """Latents (fp16, on the CPU) of pictures `n x h x w x 3` of bytes, some at a time."""
    parts = (pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK))
    chunks = [encode(vae, to_signed(part.to(config.device)), config.precision) for part in parts]
    return torch.cat(chunks).half().cpu().contiguous()


def write_latents(config: RecipeConfig, first: int = 0, stride: int = 1) -> None:
    """Encode the missing shards number `first`, `first + stride`, ... of `config.unet.num_latents` samples."""
    composer = build_composer(config)
    tokenizer = build_tokenizer(vocabulary_words(), config.work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(config.work / "vae").to(config.device).eval()
    num_shards = -(-config.unet.num_latents // SHARD)
    paths = {s: config.work / "latents" / f"latents-{s:04d}.safetensors" for s in range(first, num_shards, stride)}
    missing = [shard for shard, path in paths.items() if not path.is_file()]
    composed = spread(lambda number: compose_shard(composer, config, number), missing, config.processes)
    for shard, samples in zip(missing, composed, strict=True):
        tensors = to_tensors(samples, vae, tokenizer, config)
        write_atomically(paths[shard], lambda target, tensors=tensors: save_file(tensors, target))  # type: ignore[misc]
        print(f"latents shard {shard} of {num_shards}", flush=True)


class LatentStore:
    """The encoded samples found so far, in the device's memory; what is drawn of them comes from its random numbers.

    `refresh` takes up shards written since.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device, self.known = folder, device, set[str]()
        for name in ("latents", *TRUTH, "look", "order"):
            setattr(self, name, torch.empty(0))
        self.refresh()

    latents: Tensor
    variants: Tensor
    scenes: Tensor
    mirrored: Tensor
    masks: Tensor
    captions: Tensor
    look: Tensor
    order: Tensor

    def refresh(self) -> None:
        """Append shards that appeared in the folder."""
        fresh = [p for p in sorted(self.folder.glob("latents-*.safetensors")) if p.name not in self.known]
        if not fresh:
            return
        shards = [load_file(path, device=self.device) for path in fresh]
        for name in ("latents", *TRUTH):
            parts = [getattr(self, name)] if self.known else []
            setattr(self, name, torch.cat([*parts, *(shard[name] for shard in shards)]))
        self.known |= {path.name for path in fresh}
        self.look = 2 * self.variants.long() + self.mirrored.long()
        self.order = self.look.argsort()
        self.ordered = self.look[self.order]

    def draw(self, count: int) -> Tensor:
        """Numbers (count,) of random samples."""
        return torch.randint(0, len(self), (count,), device=self.device)

    def draw_companions(self, picked: Tensor) -> Tensor:
        """For each sample of `picked` (n,) a random one of the same variant on the same side, perhaps itself."""
        wanted = self.look[picked]
        first, end = torch.searchsorted(self.ordered, wanted), torch.searchsorted(self.ordered, wanted, right=True)
        chosen = first + (torch.rand(len(picked), device=self.device) * (end - first)).long()
        return self.order[torch.minimum(chosen, end - 1)]

    def draw_captions(self, picked: Tensor, dropout: float) -> Tensor:
        """Token ids (n, MAX_TOKENS) of a random caption of each sample, empty with probability `dropout`."""
        number = torch.randint(0, self.captions.shape[1], (len(picked),), device=self.device)
        captions = self.captions[picked, number].long()
        return torch.where(torch.rand((len(picked), 1), device=self.device) < dropout, self.empty, captions)

    @property
    def empty(self) -> Tensor:
        """Token ids of the empty caption: after its start, the padding that ends every caption."""
        first = self.captions[0, 0].long()
        return torch.cat([first[:1], first[-1:].expand(len(first) - 1)])

    def __len__(self) -> int:
        return len(self.latents)
