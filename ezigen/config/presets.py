"""Named samplers as functions: a preset is code that can be read, called and overridden."""

from collections.abc import Callable

from ezigen.config.sampler import LoopConfig, SamplerConfig


def paper() -> SamplerConfig:
    """The published method: 50 steps, split 0.4, guidance 7.5, loops until images agree to 0.99 (paper 3.2, 3.3)."""
    return SamplerConfig()


def released() -> SamplerConfig:
    """DDPM, the negative prompt and the 3 to 9 loops of the authors' published code.

    Its other departures (re-noising at t = 400, an 8-bit image between loops, a CLIP stop test) are not reproduced.
    """
    return SamplerConfig(
        solver="ddpm",
        negative_prompt="dark, blur, defoucus, lack of content, dizzy.",
        loops=LoopConfig(min_loops=3, max_loops=9),
    )


def embedded() -> SamplerConfig:
    """The paper's procedure for the embedded 64 px model.

    Its latents are 16 x 16, where a sketch fixes every outline within the first steps: the subject has to enter earlier
    (split 0.7 instead of 0.4) to bring its shape and not only its colours. Half the steps and less guidance suffice,
    and its own small DINOv2 sees 0.95 to 0.98 between images that a person calls settled.
    """
    return SamplerConfig(
        num_steps=25, split_ratio=0.7, guidance_scale=2.0, loops=LoopConfig(min_loops=2, max_loops=6, threshold=0.97)
    )


PRESETS: dict[str, Callable[[], SamplerConfig]] = {"paper": paper, "released": released, "embedded": embedded}
