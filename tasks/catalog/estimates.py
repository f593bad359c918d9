"""What the missing work will cost, before any of it is done."""

from dataclasses import dataclass

from ezigen.config import SamplerConfig
from tasks.storage.ledger import Measured

# The paper's mean number of loops with 3 to 10 allowed (section 4.4).
MEAN_LOOPS = 6.67
# A PNG of a photograph-like picture takes about this much.
BYTES_PER_PIXEL = 1.6


@dataclass(frozen=True)
class Estimate:
    """What a number of items will cost. `worker_hours` is None when nobody has measured a UNet call yet."""

    num_unet_calls: int
    image_bytes: int
    worker_hours: float | None


def expected_unet_calls(sampler: SamplerConfig, *, edits: bool = False) -> float:
    """UNet calls per image: each guidance branch counts one, encoding the subject counts one. Those of an edit: its
    source's way to noise and its transfers.

    Where guidance begins and ends is known up to a step: the timesteps are taken to be evenly spaced.
    """
    timesteps = [1 + 1000 * left // sampler.num_steps for left in reversed(range(sampler.num_steps))]
    calls = [1 + sampler.is_guided(t, edits=edits) for t in timesteps]
    if edits:
        transfer = calls[sampler.num_steps_before_edit :]
        loops = _expected_loops(sampler) if sampler.mode == "iterative" else 0.0
        return len(transfer) + (1 + loops) * sum(transfer)
    if sampler.mode == "text_only":
        return float(sum(calls))
    loops = _expected_loops(sampler) if sampler.mode == "iterative" else 0.0
    transfer = calls if sampler.mode == "full_injection" else calls[sampler.num_sketch_steps :]
    encodings = max(1, sampler.subject_slots)
    if sampler.is_adaptive:
        encodings *= round((1 + loops) * len(transfer))
    return encodings + sum(calls) + loops * sum(transfer)


def estimate(
    num_items: int,
    sampler: SamplerConfig,
    measured: Measured,
    *,
    num_edits: int = 0,
    seconds_per_call: float | None = None,
    image_size_px: int = 512,
) -> Estimate:
    """The cost of `num_items` images, `num_edits` of them edits: UNet calls by the sampler, bytes and time as measured
    on this output so far.

    `seconds_per_call` (one sample's share of a UNet call) overrides what was measured.
    """
    num_calls = (num_items - num_edits) * expected_unet_calls(sampler)
    num_calls += num_edits * expected_unet_calls(sampler, edits=True)
    if seconds_per_call is None and measured.num_unet_calls:
        seconds_per_call = measured.seconds / measured.num_unet_calls
    bytes_each = (
        measured.image_bytes / measured.num_images if measured.num_images else BYTES_PER_PIXEL * image_size_px**2
    )
    return Estimate(
        num_unet_calls=round(num_calls),
        image_bytes=round(num_items * bytes_each),
        worker_hours=None if seconds_per_call is None else num_calls * seconds_per_call / 3600,
    )


def _expected_loops(sampler: SamplerConfig) -> float:
    loops = sampler.loops
    return loops.num_loops if loops.stop == "fixed" else min(max(MEAN_LOOPS, loops.min_loops), loops.max_loops)
