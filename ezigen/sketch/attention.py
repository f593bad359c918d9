"""Where in a picture the frozen UNet sees a word of its prompt: the text cross-attention of one forward call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ezigen.config import ErrorCode, ItemError
from ezigen.diffusion import NoiseSource
from ezigen.models.blocks import transformer_blocks
from ezigen.models.pixels import to_pixels
from ezigen.models.stack import Stack, encode_pictures, encode_prompts, tokenize_prompts
from ezigen.models.unet import call_unet

LOOK_AT = 0.3
"""Share of the schedule's timesteps at which a picture is looked at: details are gone, objects are not."""

_SIDES = range(8, 33)
"""Cells along the shorter side of the maps that are used: coarser ones know no place, finer ones follow texture."""


def find_word(stack: Stack, prompt: str, word: str) -> list[int]:
    """Positions of the word's tokens in the prompt, of every occurrence. A word may be several, as in "teddy bear".

    Raises ItemError(ROW_INVALID) when the prompt does not hold it, or only behind what the model reads.
    """
    # Of several text encoders what the first one reads: the others read the same words at the same places.
    ids = tokenize_prompts(stack, [prompt]).input_ids.chunk(len(stack.text_networks), dim=1)[0][0].tolist()
    wanted = stack.tokenizer(word, add_special_tokens=False).input_ids
    starts = [start for start in range(len(ids)) if wanted and ids[start : start + len(wanted)] == wanted]
    if not starts:
        message = (
            f"subject_class {word!r} does not stand in the prompt {prompt[:80]!r}, so the sketch shows none and its "
            "region cannot be found; write it there as it is, or set sketch.region to all"
        )
        raise ItemError(ErrorCode.ROW_INVALID, message)
    return [start + offset for start in starts for offset in range(len(wanted))]


@torch.no_grad()
def word_attention(stack: Stack, picture: Image.Image, prompt: str, word: str, *, seed: int = 0) -> Tensor:
    """How much every place of the picture attends to the word, (H, W) in fp32 on the CPU, H x W the picture's pixels.

    The picture, in a size that suits the UNet, is noised to the timestep LOOK_AT and shown to it once under the prompt;
    the result is the mean of the attention probabilities over the word's tokens, the heads, and the blocks of the way
    up whose maps have a suitable size (as in arXiv 2210.04885). Adapters, if attached, must be idle.

    Raises ItemError as `find_word` does.
    """
    positions = find_word(stack, prompt, word)
    latents = encode_pictures(stack, to_pixels(picture)[None])
    noise = NoiseSource().batch([seed], "subject", 0, 0, latents.shape[1:]).to(stack.device)
    t = torch.full((1,), round(LOOK_AT * stack.schedule.num_train_steps), device=stack.device)
    noisy = stack.schedule.add_noise(latents, noise, t).to(stack.dtype)
    with record_text_attention(stack.unet) as probabilities:
        call_unet(stack.unet, noisy, t, encode_prompts(stack, [prompt]), px_per_latent=stack.px_per_latent)
    size = latents.shape[-2], latents.shape[-1]
    every = [_to_grid(probability[0][:, positions].mean(dim=1), size) for probability in probabilities.values()]
    maps = _of_suitable_size(every)
    total = torch.zeros(picture.height, picture.width)
    for one in maps:
        total += F.interpolate(one[None, None], total.shape, mode="bilinear", align_corners=False)[0, 0].cpu()
    return total / len(maps)


@contextmanager
def record_text_attention(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect, by the name of every block on the way up, what each place attends to: (B, N, L), mean over heads.

    Computed from the inputs and the projections of the layers, whichever attention code then carries them out.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
            found[name] = _probabilities(layer, hidden, text)

        return hook

    blocks = {name: block for name, block in transformer_blocks(unet).items() if name.startswith("up_blocks")}
    handles = [block.attn2.register_forward_pre_hook(keep(name), with_kwargs=True) for name, block in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _probabilities(layer: Any, hidden: Tensor, text: Tensor) -> Tensor:
    heads = int(layer.heads)
    query, key = (
        tokens.unflatten(-1, (heads, -1)).transpose(1, 2).float() for tokens in (layer.to_q(hidden), layer.to_k(text))
    )
    scores: Tensor = query @ key.transpose(-1, -2) * float(layer.scale)
    return scores.softmax(dim=-1).mean(dim=1)


def _to_grid(cells: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """The cells (N,) of a block as (h, w): the latents' size, halved and rounded up until it has N."""
    height, width = latent_size
    while height * width > len(cells):
        height, width = -(-height // 2), -(-width // 2)
    return cells.reshape(height, width)


def _of_suitable_size(maps: list[Tensor]) -> list[Tensor]:
    """Maps with a number of cells in _SIDES; of a model without such, the ones that come closest."""
    suitable = [one for one in maps if min(one.shape) in _SIDES]
    if suitable:
        return suitable
    middle = (_SIDES[0] + _SIDES[-1]) / 2
    nearest = min(abs(min(one.shape) - middle) for one in maps)
    return [one for one in maps if abs(min(one.shape) - middle) == nearest]
