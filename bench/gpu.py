"""The denoising loop on a GPU: shapes of Stable Diffusion 2.1-base (512 px) or XL (1024 px), random weights, bf16.

    python bench/gpu.py [--model sd21|sdxl] [--slots 1 2 4 8 16 32 64] [--steps 10] [--device cuda]

Printed are, per number of slots until memory ends: images per second and the share of the GPU's peak that useful FLOP
reach; the batch-1 loop of `ezigen.sampling` in the same run; the time per UNet evaluation against diffusers' own
pipeline with the same UNet; and the operators that one step spends its time in. Without a GPU it says
so and measures nothing; `--device cpu --divisor 4 --size 64` tries the script itself.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from lines import show
from PIL import Image
from shapes import SCHEDULE, build_stack

from ezigen.adapters import AdapterSet, attach_adapters, detach_adapters
from ezigen.config import LoopConfig, SamplerConfig
from ezigen.engine import NETWORK_PARTS, Engine, EngineLimits, Networks
from ezigen.images import Picture
from ezigen.models import Stack
from ezigen.models.faults import is_out_of_memory
from ezigen.models.peak import peak_flops
from ezigen.sampling import Generator, Request


def make_requests(count: int, size_px: int) -> list[Request]:
    """Different prompts and seeds, one subject each."""
    subject = Picture(Image.linear_gradient("L").resize((size_px, size_px)).convert("RGB"))
    return [
        Request(f"{n}", f"a photo of a cup, scene {n}", (subject,), "cup", seed=n, preview=False) for n in range(count)
    ]


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, with everything that was queued on the device."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_engine(networks: Networks, sampler: SamplerConfig, slots: int) -> dict[str, float]:
    """Images per second and FLOP per second, after a round that warms up."""
    stack = networks.stack
    engine = Engine(networks, sampler, EngineLimits(num_slots=slots, max_held=4 * slots))
    requests = make_requests(3 * slots, stack.image_size_px)
    list(engine.generate(requests[:slots]))
    before = engine.counters.snapshot()
    seconds = timed(lambda: list(engine.generate(requests[slots:])), stack.device)
    counts = engine.counters.snapshot()
    made = {name: value - before.get(name, 0) for name, value in counts.items()}
    flop = sum(value for name, value in made.items() if name.startswith("flop."))
    inside = sum(made.get(f"seconds.{part}", 0) for part in NETWORK_PARTS)
    return {"images_per_s": 2 * slots / seconds, "flops": flop / seconds, "inside": inside / seconds}


def diffusers_pipeline(stack: Stack) -> Any:
    """Their pipeline with our networks."""
    networks: dict[str, Any] = {
        "vae": stack.vae,
        "text_encoder": stack.text_encoder,
        "tokenizer": stack.tokenizer,
        "unet": stack.unet,
        "scheduler": DDIMScheduler.from_config(SCHEDULE),
        "feature_extractor": None,
    }
    if stack.text_encoder_2 is None:
        return StableDiffusionPipeline(**networks, safety_checker=None, requires_safety_checker=False)
    texts = {"text_encoder_2": stack.text_encoder_2, "tokenizer_2": stack.tokenizer_2}
    return StableDiffusionXLPipeline(**networks, **texts, add_watermarker=False)


def per_evaluation(stack: Stack, adapters: AdapterSet, slots: int, steps: int) -> tuple[float, float]:
    """Seconds per UNet evaluation: ours in mode text_only, and diffusers' pipeline with the same UNet and batch."""
    sampler = SamplerConfig(mode="text_only", num_steps=steps)
    requests = make_requests(slots, stack.image_size_px)
    engine = Engine(Networks(stack, adapters), sampler, EngineLimits(num_slots=slots, max_held=slots))
    list(engine.generate(requests))
    again = [replace(request, key=f"again {request.key}", seed=request.seed + 1000) for request in requests]
    ours = timed(lambda: list(engine.generate(again)), stack.device)
    detach_adapters(stack.unet)
    pipeline = diffusers_pipeline(stack)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [request.prompt for request in requests]
    side = stack.image_size_px
    options = {"num_inference_steps": steps, "height": side, "width": side}
    pipeline(prompts, **options)
    theirs = timed(lambda: pipeline(prompts, **options), stack.device)
    return ours / (2 * slots * steps), theirs / (2 * slots * steps)


def profile_step(networks: Networks, sampler: SamplerConfig, slots: int) -> str:
    """Where the time of some steps goes, by operator."""
    stack = networks.stack
    engine = Engine(networks, sampler, EngineLimits(num_slots=slots, max_held=slots))
    for request in make_requests(slots, stack.image_size_px):
        engine.add(request)
    for _ in range(sampler.num_steps + slots + 2):  # past the sketches and the subjects
        engine.step()
    on_gpu = stack.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            engine.step()
        if on_gpu:
            torch.cuda.synchronize()
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=60))


def main() -> None:
    """All of it, smallest first, until memory ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--divisor", type=int, default=1)
    parser.add_argument("--model", choices=["sd21", "sdxl"], default="sd21")
    parser.add_argument("--size", type=int, help="pixels; 512 for sd21, 1024 for sdxl")
    args = parser.parse_args()
    size = args.size or (1024 if args.model == "sdxl" else 512)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return
    dtype = "bf16" if args.device == "cuda" else "fp32"
    stack = build_stack(args.divisor, args.device, dtype=dtype, image_size_px=size, model=args.model)
    adapters = attach_adapters(stack.unet).to(stack.device, stack.dtype)
    networks = Networks(stack, adapters)
    sampler = SamplerConfig(num_steps=args.steps, loops=LoopConfig(stop="fixed", num_loops=3))
    one_by_one = Generator(stack, adapters, None, sampler)
    requests = make_requests(4, size)
    one_by_one.generate(requests[:1])
    seconds = timed(lambda: [one_by_one.generate([request]) for request in requests[1:]], stack.device)
    baseline, best, fitting = 3 / seconds, 0.0, 1
    for slots in args.slots:
        try:
            made = measure_engine(networks, sampler, slots)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(f"{slots} slots do not fit into memory")
            break
        best, fitting = max(best, made["images_per_s"]), slots
        show(f"images per second, {slots} slots against batch 1", made["images_per_s"], "1/s", baseline)
        peak = peak_flops(stack.device.type, str(stack.dtype).removeprefix("torch."))
        if peak is not None:
            show(f"FLOP utilisation, {slots} slots", made["flops"] / peak, "share", wanted="value >= 0.5")
        show(f"time inside the networks, {slots} slots", made["inside"], "share")
    profile = profile_step(networks, sampler, fitting)
    ours, theirs = per_evaluation(stack, adapters, fitting, args.steps)
    show(f"ms per UNet evaluation against diffusers, {fitting} slots", 1e3 * ours, "ms", 1e3 * theirs)
    print(profile)
    print(f"images/s against batch 1, best: {best / baseline:.2f} (wanted >= 4 on a GPU)")


if __name__ == "__main__":
    main()
