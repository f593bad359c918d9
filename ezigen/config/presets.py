"""Named samplers as functions: a preset is code that can be read, called and overridden."""

from collections.abc import Callable

from ezigen.config.sampler import EditConfig, LoopConfig, SamplerConfig


def paper() -> SamplerConfig:
    """The published method: 50 steps, split 0.4, guidance 7.5, loops until images agree to 0.99 (paper 3.2, 3.3)."""
    return SamplerConfig()


def released() -> SamplerConfig:
    """What the authors' published code does where it departs from the paper and the image shows it, switch by switch.

    DDPM. The negative prompt in the first pass and none in the loops. Loops noise to t = 400 and start at t = 381, from
    an 8-bit picture that goes through the VAE, 3 to 9 times, until CLIP's vectors of two images agree. The subject is
    squashed to a square, noised anew for every item, and followed by blank pictures up to four. Edits blend with a
    background two steps behind and do not restore it. The extra residual h2 = h1 + a + u belongs to the adapter.

    Left out, as it only costs time: a second UNet in memory, and 100 of 210 to 330 evaluations for diagnostics.
    The authors' subject noise is not seeded; here it follows from the item's seed, so that images can be made again.
    """
    return SamplerConfig(
        solver="ddpm",
        negative_prompt="dark, blur, defoucus, lack of content, dizzy.",
        subject_noise="item",
        subject_fit="squash",
        subject_slots=4,
        loops=LoopConfig(
            min_loops=3,
            max_loops=9,
            measure="clip",
            renoise_timestep=400,
            through_pixels=True,
            keeps_negative_prompt=False,
        ),
        edit=EditConfig(background_lag=2, keeps_background=False),
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


# ---- Savings: each takes a sampler and returns one that costs less. What each of them loses is in docs/performance.md.


def second_order(sampler: SamplerConfig, share: float = 0.72) -> SamplerConfig:
    """DPM-Solver++ 2M with a share of the steps, at least 2. The split stays where it is on the way from noise."""
    num_steps = max(2, round(share * sampler.num_steps))
    return sampler.model_copy(update={"solver": "dpmpp_2m", "num_steps": num_steps})


def guide_first(sampler: SamplerConfig, share: float = 0.5) -> SamplerConfig:
    """Guidance for the sketch and the first share of each transfer; the last steps only refine what is there.

    A timestep decides, not a count, so that the same noise levels are guided whatever the number of steps.
    """
    first_transfer = 1000 * sampler.num_transfer_steps / sampler.num_steps
    return sampler.model_copy(update={"guidance_min_timestep": round(first_transfer * (1 - share))})


def foreground_only(sampler: SamplerConfig) -> SamplerConfig:
    """Adapters attend to the tokens that a picture's mask touches; a picture without a mask keeps all."""
    return sampler.model_copy(update={"subject_tokens": "foreground"})


def stop_by_latents(sampler: SamplerConfig, threshold: float = 0.87, max_loops: int | None = None) -> SamplerConfig:
    """The stop test on latents, which needs neither the decoder nor an image encoder between loops."""
    changes: dict[str, object] = {"measure": "latent", "threshold": threshold}
    if max_loops is not None:
        changes |= {"max_loops": max_loops, "min_loops": min(max_loops, sampler.loops.min_loops)}
    return sampler.model_copy(update={"loops": sampler.loops.model_copy(update=changes)})


# ---- Speeds: the savings together.


def exact(sampler: SamplerConfig) -> SamplerConfig:
    """The algorithm as it is."""
    return sampler


def balanced(sampler: SamplerConfig) -> SamplerConfig:
    """The savings whose loss cannot be measured, together; the default."""
    return guide_first(second_order(sampler))


def draft(sampler: SamplerConfig) -> SamplerConfig:
    """To look at scenes and seeds before the run that counts."""
    return stop_by_latents(guide_first(second_order(sampler, 0.4), 0.0), max_loops=2)


PRESETS: dict[str, Callable[[], SamplerConfig]] = {"paper": paper, "released": released, "embedded": embedded}

SPEEDS: dict[str, Callable[[SamplerConfig], SamplerConfig]] = {"exact": exact, "balanced": balanced, "draft": draft}
