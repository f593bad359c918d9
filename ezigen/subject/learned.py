"""Subject encoders that learn, beside the frozen UNet: the other rows of the paper's Tables 4 and 5."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ezigen.models.blocks import STOCK
from ezigen.models.image_encoder import ImageEncoder
from ezigen.models.precision import mixed_precision
from ezigen.models.text import TextCondition
from ezigen.models.unet import call_unet
from ezigen.subject.features import SubjectFeatures
from ezigen.subject.norms import record_norms

_ALIGNMENT = 64
"""Bytes: what the fastest instructions of a CPU load at once."""


class TrainedUNet(nn.Module):
    """A copy of the UNet that learns to encode subjects, as in BootPIG (paper, Tables 4 and 5).

    Untrained it gives the frozen UNet's features bit by bit. What comes after the last adapted block changes no
    feature: it learns nothing, is not stored, and stays that of the frozen UNet.
    """

    kind: Literal["trained"] = "trained"

    def __init__(self, unet: Any, blocks: Sequence[str]) -> None:
        """unet: the frozen one, with or without adapters, which have no part in the copy. blocks: those adapted."""
        super().__init__()
        network: Any = type(unet)
        self._learned = _influential(network, unet.to_json_string(), tuple(blocks))
        with torch.device("meta"):
            copy = network.from_config(unet.config)
        weights = {name.replace(f".{STOCK}.", "."): _copy(tensor) for name, tensor in unet.state_dict().items()}
        copy.load_state_dict(weights, assign=True)
        self.unet = copy.eval()
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(name in self._learned)

    def forward(self, noisy_latents: Tensor, t: Tensor, text: TextCondition, *, px_per_latent: int) -> SubjectFeatures:
        """As `encode_latents`, with gradients where they are enabled; computes in the precision of the latents."""
        dtypes = {parameter.dtype for parameter in self.unet.parameters()}
        # After a change of what learns alone the rest may be in another precision: the highest one then counts.
        weights = dtypes.pop() if len(dtypes) == 1 else torch.float32
        with mixed_precision(noisy_latents.device, noisy_latents.dtype, weights), record_norms(self.unet) as tokens:
            call_unet(self.unet, noisy_latents, t, text, px_per_latent=px_per_latent)
        return SubjectFeatures(tokens)

    def tensors(self) -> dict[str, Tensor]:
        """What learns, by its name in the UNet."""
        return {name: tensor for name, tensor in self.unet.named_parameters() if name in self._learned}


class Projector(nn.Module):
    """An image encoder's tokens as the tokens of one block: a linear map to its width and a layer norm.

    Adapters begin as copies of self-attention, which reads the output of the block's norm1. The layer norm here begins
    as a copy of that one, so that each channel has the mean and the spread which the copied layers know.
    """

    def __init__(self, in_features: int, norm: nn.LayerNorm, generator: torch.Generator) -> None:
        super().__init__()
        weight = norm.weight
        with torch.device(weight.device):
            self.linear = nn.Linear(in_features, len(weight), dtype=weight.dtype)
            self.norm = nn.LayerNorm(len(weight), eps=norm.eps, dtype=weight.dtype)
        self.norm.load_state_dict(norm.state_dict())
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(len(weight), in_features, generator=generator) / in_features**0.5)
            self.linear.bias.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, C)."""
        projected: Tensor = self.norm(self.linear(tokens.to(self.linear.weight.dtype)))
        return projected


@dataclass(frozen=True)
class ImageSource:
    """Where an image encoder is, and the fingerprint of its files."""

    location: str
    fingerprint: str


class ProjectedTokens(nn.Module):
    """Patch tokens of a frozen image encoder, DINO or CLIP, projected to the width of each adapted block (paper,
    Table 5). The projectors learn; they have no timestep, no noise and no text.
    """

    def __init__(
        self,
        kind: Literal["dino", "clip"],
        images: ImageEncoder,
        source: ImageSource,
        blocks: Mapping[str, Any],
        *,
        seed: int = 0,
    ) -> None:
        """blocks: the transformer blocks to project to, by name. seed: of the projectors' first weights."""
        super().__init__()
        self.kind = kind
        self.source = source
        self._images = images  # no module, so that it is neither trained nor stored
        # A ModuleDict allows no dots in its keys; `tensors` gives the names that are stored.
        generator = torch.Generator().manual_seed(seed)
        self.projectors = nn.ModuleDict(
            {name.replace(".", "/"): Projector(images.width, block.norm1, generator) for name, block in blocks.items()}
        )

    def forward(self, pictures: Tensor) -> SubjectFeatures:
        """Features of pixels (B, 3, H, W) in [-1, 1], with gradients where they are enabled."""
        device = next(self.parameters()).device
        if self._images.device != device:  # a pipeline has moved the projectors
            self._images = self._images.to(device)
        patches = self._images.patch_tokens(pictures)
        return SubjectFeatures(
            {key.replace("/", "."): projector(patches) for key, projector in self.projectors.items()}
        )

    def tensors(self) -> dict[str, Tensor]:
        """What learns: `{block}.linear.weight`, `.linear.bias`, `.norm.weight`, `.norm.bias`."""
        return {name.replace("/", "."): tensor for name, tensor in self.projectors.named_parameters()}


LearnedEncoder: TypeAlias = TrainedUNet | ProjectedTokens


def _copy(tensor: Tensor) -> Tensor:
    """The same numbers at an address that is as little aligned: on a CPU the last bits of a product depend on that, and
    weights that are mapped from a file lie anywhere.
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return tensor.clone()
    room = torch.empty(tensor.nbytes + _ALIGNMENT, dtype=torch.uint8)
    start = (tensor.data_ptr() - room.data_ptr()) % _ALIGNMENT
    return room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


@lru_cache(maxsize=8)
def _influential(network: Any, config_json: str, blocks: tuple[str, ...]) -> frozenset[str]:
    """Names of the parameters on which the features of these blocks depend. On the meta device there are no numbers: it
    is asked only what depends on what.
    """
    with torch.device("meta"), torch.enable_grad():
        return _depended_on(network.from_config(json.loads(config_json)), blocks)


def _depended_on(unet: Any, blocks: Sequence[str]) -> frozenset[str]:
    config = unet.config
    side = 2 ** (len(config.block_out_channels) - 1)  # the smallest that can be halved as often
    pooled = None
    if config.addition_embed_type == "text_time":
        num_sizes = 6 * config.addition_time_embed_dim
        pooled = torch.empty(1, config.projection_class_embeddings_input_dim - num_sizes)
    text = TextCondition(torch.empty(1, 1, config.cross_attention_dim), pooled)
    with record_norms(unet) as tokens:
        call_unet(unet, torch.empty(1, config.in_channels, side, side), torch.empty(1), text, px_per_latent=1)
    parameters = dict(unet.named_parameters())
    sums = [tokens[name].sum() for name in blocks]
    gradients = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
    return frozenset(name for name, found in zip(parameters, gradients, strict=True) if found is not None)
