"""How many slots an engine can have: measured on the device at start, with the networks that it will use."""

import torch
from PIL import Image

from ezigen.config import SamplerConfig
from ezigen.diffusion import CLEAN, NoiseSource
from ezigen.engine.counters import Counters
from ezigen.engine.planner import Kind, Lane
from ezigen.engine.runner import Networks, Runner
from ezigen.engine.work import Guide, Passage, SubjectJob
from ezigen.images import Picture
from ezigen.sampling.denoiser import Step

MEMORY_SHARE = 0.8
"""Of a GPU's free memory; the rest is for fragments, for decoding, and for subjects that are kept."""

_PROBES = (1, 3)


def fitting_slots(networks: Networks, sampler: SamplerConfig, most: int) -> int:
    """The number of slots, at least 1 and at most `most`, whose guided steps with a subject fit into free GPU memory.

    On a CPU the answer is `most`: a machine's memory is shared with programs that come and go.
    """
    device = networks.stack.device
    if device.type != "cuda" or most == 1:
        return most
    measured = {slots: _probe(networks, sampler, slots) for slots in _PROBES}
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return slots_within(MEMORY_SHARE * free, measured, most)


def slots_within(available: float, measured: dict[int, int], most: int) -> int:
    """How many slots fit into `available` bytes, from the bytes of a few and of many, each further one alike."""
    (few, few_bytes), (many, many_bytes) = sorted(measured.items())
    per_slot = max((many_bytes - few_bytes) / (many - few), 1.0)
    return min(most, max(1, few + int((available - few_bytes) // per_slot)))


def _probe(networks: Networks, sampler: SamplerConfig, num_slots: int) -> int:
    """The bytes that slots and one step in them take beyond what is there already."""
    device = networks.stack.device
    runner = Runner(networks, sampler, NoiseSource(), Counters())
    guide = _blank_guide(networks, runner)
    latents = torch.zeros((1, *networks.stack.latent_shape), device=device)
    lane = Lane(Kind.TRANSFER, guided=sampler.guidance_scale != 1.0)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for slot in range(num_slots):
        runner.enter(lane, num_slots, slot, guide)
    runner.denoise(lane, [Passage(latents, guide, 0, (Step(1, 1, CLEAN),)) for _ in range(num_slots)])
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _blank_guide(networks: Networks, runner: Runner) -> Guide:
    text = runner.encode_text("")
    if networks.adapters is None:
        return Guide(text, text)
    side = networks.stack.image_size_px
    blank = Picture(Image.new("RGB", (side, side), "white"))
    return Guide(text, text, runner.encode_subject(SubjectJob("", (blank,), ("",))))
