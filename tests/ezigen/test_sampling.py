"""The method's procedure: phases, loops, stops, independence of batch mates."""

from contextlib import nullcontext
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, ItemError, LoopConfig, ModelConfig, SamplerConfig, released
from ezigen.diffusion import NoiseSource
from ezigen.images import Picture
from ezigen.models import decode_latents, encode_prompts, to_pixels
from ezigen.sampling import Generator, Request, load_generator, patch_similarity, stop_reason
from ezigen.sampling.denoiser import Conditions, Denoiser, Step, plan_steps
from ezigen.subject import SubjectEncoder

FIXED = LoopConfig(stop="fixed", num_loops=2)


def picture(seed=0, size=(40, 30)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8)
    return Picture(Image.fromarray(noise).resize(size))


def request(index=0, **changes):
    prompts = ["a photo of a cup on the beach", "a red chair in the snow", "a lamp in the forest", "a dog on grass"]
    fields = {
        "key": f"item-{index}",
        "prompt": prompts[index % 4],
        "subjects": (picture(index),),
        "subject_class": "cup",
        "seed": index,
    }
    return Request(**{**fields, **changes})


def sampler(**changes):
    return SamplerConfig(**{"num_steps": 5, "loops": FIXED, "guidance_scale": 4.0, **changes})


def make(stack, adapters, dinov2=None, num_slots=None, **changes):
    return Generator(stack, adapters, dinov2, sampler(**changes), num_slots=num_slots)


def array(image):
    return np.asarray(image, dtype=np.int16)


def assert_same(one, other):
    """Bit-equal images and everything else but the time they took."""
    assert [image.tobytes() for image in one.loops] == [image.tobytes() for image in other.loops]
    assert one.image.tobytes() == other.image.tobytes()
    assert one.similarities == other.similarities
    assert (one.num_loops, one.stop_reason, one.num_unet_calls) == (
        other.num_loops,
        other.stop_reason,
        other.num_unet_calls,
    )


# --- against diffusers ---


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_text_only_equals_the_stable_diffusion_pipeline(tiny_folder, tiny_stack, guidance_scale):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tiny_folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, negative = "a photo of a cup on the beach", "dark blur"
    noise = NoiseSource().batch([3], "initial", 0, 0, tiny_stack.latent_shape)
    options = {"num_inference_steps": 10, "guidance_scale": guidance_scale, "negative_prompt": negative}
    theirs = pipeline(prompt, latents=noise, output_type="pt", **options).images[0]
    # The bare latents, before anything becomes 8-bit.
    setting = sampler(num_steps=10, guidance_scale=guidance_scale, mode="text_only")
    denoiser = Denoiser(tiny_stack, None, setting, NoiseSource())
    conditions = Conditions(encode_prompts(tiny_stack, [prompt]), encode_prompts(tiny_stack, [negative]), (3,))
    with torch.no_grad():
        *_, last = denoiser.run(noise, conditions, plan_steps(tiny_stack.schedule.timesteps(10)), None)
    ours = (decode_latents(tiny_stack, last.latents)[0] / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(ours, theirs, atol=1e-4)
    # And what a user gets.
    sample = Generator(tiny_stack, None, None, setting).generate([request(3, prompt=prompt, negative_prompt=negative)])[
        0
    ]
    assert np.abs(array(sample.image) - (theirs * 255).round().permute(1, 2, 0).numpy()).max() <= 1
    assert (sample.sketch, sample.loops, sample.stop_reason) == (None, (), "mode")
    assert sample.num_unet_calls == 10 * (1 if guidance_scale == 1.0 else 2)


def test_text_only_ignores_attached_adapters_and_the_subject(tiny_stack, adapters):
    plain = make(tiny_stack, None, mode="text_only").generate([request(subjects=())])[0]
    attached = make(tiny_stack, adapters, mode="text_only").generate([request()])[0]
    assert_same(plain, attached)


# --- phases ---


SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}


class ByHand:
    """The paper's procedure for one request, written out with diffusers' schedulers and plain UNet calls."""

    def __init__(self, stack, adapters, setting, item, monkeypatch):
        self.stack, self.adapters, self.setting, self.item = stack, adapters, setting, item
        self.source = NoiseSource()
        self.text = encode_prompts(stack, [item.negative_prompt, item.prompt]).tokens
        self.monkeypatch = monkeypatch
        square = Image.new("RGB", (40, 40), "white")
        square.paste(item.subjects[0].rgb, (0, 5))
        pixels = to_pixels(square.resize((stack.image_size_px,) * 2, Image.Resampling.LANCZOS))
        self.features = SubjectEncoder(stack).encode(pixels[None], [item.subject_class])

    def scheduler(self):
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
        scheduler = SCHEDULERS[self.setting.solver].from_config(
            betas, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
        )
        if self.setting.solver == "dpmpp_2m":  # its own spacing differs from the others'
            scheduler.set_timesteps(timesteps=self.stack.schedule.timesteps(self.setting.num_steps))
        else:
            scheduler.set_timesteps(self.setting.num_steps)
        return scheduler

    def denoise(self, x, first, last, subject, loop):
        scheduler = self.scheduler()  # a fresh one: multistep schedulers remember
        if self.setting.solver == "dpmpp_2m":
            scheduler.set_begin_index(first)
        for number, t in enumerate(scheduler.timesteps[first:last], start=first + 1):
            with self.adapters.active(subject) if subject else nullcontext():
                negative, positive = self.stack.unet(torch.cat([x, x]), t, self.text).sample.chunk(2)
            guided = negative + self.setting.guidance_scale * (positive - negative)
            noise = self.noise("step", loop, number)
            self.monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, n=noise, **__: n)
            x = scheduler.step(guided, t, x).prev_sample
        return x

    def noise(self, purpose, loop, step=0):
        return self.source.batch([self.item.seed], purpose, loop, step, self.stack.latent_shape)

    def images(self, num_loops):
        """Pixels after the first transfer and each loop."""
        split, end = self.setting.num_sketch_steps, self.setting.num_steps
        x = self.denoise(self.noise("initial", 0), 0, split, None, 0)
        latents = [self.denoise(x, split, end, self.features, 0)]
        for loop in range(1, num_loops + 1):
            ddpm = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
            x = ddpm.add_noise(latents[-1], self.noise("renoise", loop), self.scheduler().timesteps[split : split + 1])
            latents.append(self.denoise(x, split, end, self.features, loop))
        return [decode_latents(self.stack, latent)[0] for latent in latents]


@torch.no_grad()
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m"])
def test_iterative_follows_the_paper(tiny_stack, adapters, dinov2, solver, monkeypatch):
    setting = sampler(num_steps=10, solver=solver)
    sample = Generator(tiny_stack, adapters, dinov2, setting).generate([request()])[0]
    expected = ByHand(tiny_stack, adapters, setting, request(), monkeypatch).images(num_loops=2)
    assert len(sample.loops) == 3
    for image, pixels in zip(sample.loops, expected, strict=True):
        assert np.abs(array(image) - ((pixels.clamp(-1, 1) * 127.5 + 127.5).permute(1, 2, 0).numpy())).max() <= 0.51
    assert sample.image is sample.loops[-1]
    assert (sample.num_loops, sample.stop_reason) == (2, "fixed")
    patches = [dinov2.patch_tokens(pixels[None]) for pixels in expected]
    similarities = [patch_similarity(patches[1], patches[0]).item(), patch_similarity(patches[2], patches[1]).item()]
    assert sample.similarities == pytest.approx(similarities, abs=1e-4)


def test_decoupled_is_iterative_with_no_loops(tiny_stack, adapters, dinov2):
    decoupled = make(tiny_stack, adapters, mode="decoupled").generate([request()])[0]
    no_loops = make(tiny_stack, adapters, dinov2, loops=LoopConfig(stop="fixed", num_loops=0)).generate([request()])[0]
    two_loops = make(tiny_stack, adapters, dinov2).generate([request()])[0]
    assert decoupled.image.tobytes() == no_loops.image.tobytes() == two_loops.loops[0].tobytes()
    assert decoupled.sketch.tobytes() == two_loops.sketch.tobytes()
    assert (decoupled.num_loops, decoupled.stop_reason, no_loops.stop_reason) == (0, "mode", "fixed")


def test_full_injection_is_a_split_of_one(tiny_stack, adapters):
    full = make(tiny_stack, adapters, mode="full_injection").generate([request()])[0]
    split = make(tiny_stack, adapters, mode="decoupled", split_ratio=1.0).generate([request()])[0]
    assert full.image.tobytes() == split.image.tobytes()
    assert full.sketch is None
    assert split.sketch is None
    assert full.num_unet_calls == 1 + 5 * 2


def test_the_subject_matters_and_the_sketch_does_not_know_it(tiny_stack, adapters):
    generator = make(tiny_stack, adapters, mode="decoupled")
    one, other = generator.generate([request(0), request(0, key="other", subjects=(picture(9),))])
    assert one.sketch.tobytes() == other.sketch.tobytes()
    assert np.abs(array(one.image) - array(other.image)).max() > 3


def test_several_pictures_of_a_subject_and_mates_with_one(tiny_stack, adapters):
    both = request(0, subjects=(picture(0), picture(9)))
    generator = make(tiny_stack, adapters, mode="decoupled")
    alone, single = generator.generate([both])[0], generator.generate([request(1)])[0]
    mixed = generator.generate([both, request(1)])
    assert np.abs(array(mixed[0].image) - array(alone.image)).max() <= 1
    assert np.abs(array(mixed[1].image) - array(single.image)).max() <= 1
    assert alone.num_unet_calls == single.num_unet_calls + 1


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m"])
def test_solvers_give_finite_and_different_images(tiny_stack, adapters, dinov2, solver):
    sample = make(tiny_stack, adapters, dinov2, solver=solver).generate([request()])[0]
    assert array(sample.image).std() > 1
    assert_same(sample, make(tiny_stack, adapters, dinov2, solver=solver).generate([request()])[0])


def test_the_released_preset_runs(tiny_stack, adapters, dinov2):
    setting = released().model_copy(update={"num_steps": 5})
    sample = Generator(tiny_stack, adapters, dinov2, setting).generate([request()])[0]
    assert 3 <= sample.num_loops <= 9


# --- loops ---


@pytest.mark.parametrize(
    ("loops", "num_loops", "similarity", "expected"),
    [
        (LoopConfig(stop="fixed", num_loops=0), 0, None, "fixed"),
        (LoopConfig(stop="fixed", num_loops=3), 2, 1.0, None),
        (LoopConfig(stop="fixed", num_loops=3), 3, 0.1, "fixed"),
        (LoopConfig(), 0, None, None),
        (LoopConfig(), 2, 0.999, None),
        (LoopConfig(), 3, 0.99, None),
        (LoopConfig(), 3, 0.9901, "threshold"),
        (LoopConfig(), 10, 0.5, "max_loops"),
        (LoopConfig(min_loops=0, max_loops=0), 0, None, "max_loops"),
    ],
)
def test_stop_reasons(loops, num_loops, similarity, expected):
    assert stop_reason(loops, num_loops, similarity) == expected


def test_loops_stop_at_the_threshold_and_at_the_limits(tiny_stack, adapters, dinov2):
    always = LoopConfig(min_loops=2, max_loops=5, threshold=-1.0)
    never = LoopConfig(min_loops=0, max_loops=3, threshold=1.0)
    stopped = make(tiny_stack, adapters, dinov2, loops=always).generate([request()])[0]
    exhausted = make(tiny_stack, adapters, dinov2, loops=never).generate([request()])[0]
    assert (stopped.num_loops, stopped.stop_reason, len(stopped.similarities)) == (2, "threshold", 2)
    assert (exhausted.num_loops, exhausted.stop_reason, len(exhausted.similarities)) == (3, "max_loops", 3)
    assert len(exhausted.loops) == 4
    # 5 steps: 3 for the sketch, 2 for the transfer and each loop, 2 branches, 1 subject picture.
    assert stopped.num_unet_calls == 1 + 2 * (3 + 2 * 3)
    assert exhausted.num_unet_calls == 1 + 2 * (3 + 2 * 4)


def between(stack, adapters, dinov2, items):
    """A threshold that some of the items pass after the first loop and others do not."""
    first = [
        sample.similarities[0]
        for sample in make(stack, adapters, dinov2, loops=LoopConfig(stop="fixed", num_loops=1)).generate(items)
    ]
    return LoopConfig(min_loops=1, max_loops=4, threshold=float(np.median(first)))


def test_items_stop_alone(tiny_stack, adapters, dinov2):
    items = [request(index) for index in range(4)]
    loops = between(tiny_stack, adapters, dinov2, items)
    calls = []
    samples = make(tiny_stack, adapters, dinov2, loops=loops).generate(items, on_step=calls.append)
    assert len({sample.num_loops for sample in samples}) > 1
    assert [sample.key for sample in samples] == [item.key for item in items]
    for loop in range(5):
        active = {sample.key for sample in samples if sample.num_loops >= loop}
        seen = {key for call in calls if call.phase == "transfer" and call.loop == loop for key in call.keys}
        assert seen == active


def test_patch_similarity():
    patches = torch.randn(2, 5, 8)
    assert torch.allclose(patch_similarity(patches, 3 * patches), torch.ones(2))
    assert torch.allclose(patch_similarity(patches, -patches), -torch.ones(2))


# --- independence ---


def test_an_image_does_not_depend_on_mates_order_or_number(tiny_stack, adapters, dinov2):
    items = [request(index) for index in range(4)]
    loops = between(tiny_stack, adapters, dinov2, items)
    generator = make(tiny_stack, adapters, dinov2, num_slots=4, loops=loops)
    together = {sample.key: sample for sample in generator.generate(items)}
    assert len({sample.num_loops for sample in together.values()}) > 1
    bigger = request(7, subjects=(picture(7), picture(8)))
    for others in (items[::-1], items[1:2], [items[3], bigger, items[0]]):
        for sample in generator.generate(others):
            if sample.key in together:
                assert_same(sample, together[sample.key])


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2])
def test_without_slots_it_differs_by_rounding_alone(tiny_stack, adapters, dinov2, size):
    """Three together against batches of another size: every step's x_0 and the last pixels, before they are 8-bit.

    Latents are compared on their own scale, which random weights make six times that of a trained model; and with
    little guidance, which on random weights multiplies rounding by four in every loop.
    """
    items = [request(index) for index in range(3)]
    generator = make(tiny_stack, adapters, dinov2, guidance_scale=1.5)
    whole, parts = {}, {}
    together = generator.generate(items, on_step=partial(keep_x0, whole))
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    apart = [sample for batch in batches for sample in generator.generate(batch, on_step=partial(keep_x0, parts))]
    assert whole.keys() == parts.keys()
    assert len(whole) == 3 * (3 + 2 * 3)  # items x (sketch, then a transfer and two loops)
    for moment, x0 in whole.items():
        torch.testing.assert_close(parts[moment] / x0.std(), x0 / x0.std(), rtol=0, atol=1e-4)
    for last in [("transfer", 2, 5, item.key) for item in items]:
        pixels, other = (decode_latents(tiny_stack, seen[last][None]) for seen in (whole, parts))
        torch.testing.assert_close(other, pixels, rtol=0, atol=1e-4)
    for one, sample in zip(apart, together, strict=True):
        assert np.abs(array(one.image) - array(sample.image)).max() <= 1
        assert one.similarities == pytest.approx(sample.similarities, abs=1e-4)
        assert one.num_unet_calls == sample.num_unet_calls


def keep_x0(seen, report):
    """Keeps the x_0 (c, h, w) that each item foresees after a step; after the last one that is its final latent."""
    for key, x0 in zip(report.keys, report.x0, strict=True):
        seen[report.phase, report.loop, report.step, key] = x0


def test_two_generators_and_a_used_one_agree(tiny_stack, adapters, dinov2):
    first = make(tiny_stack, adapters, dinov2)
    fresh = first.generate([request()])[0]
    first.generate([request(2), request(3)])
    assert_same(first.generate([request()])[0], fresh)
    assert_same(make(tiny_stack, adapters, dinov2).generate([request()])[0], fresh)


def test_equal_texts_and_seeds_share_a_sketch(tiny_stack, adapters):
    items = [request(0), request(0, key="other", subjects=(picture(9),)), request(1)]
    calls = []
    samples = make(tiny_stack, adapters, mode="decoupled").generate(items, on_step=calls.append)
    assert {call.keys for call in calls if call.phase == "text"} == {("item-0", "item-2")} or {
        call.keys for call in calls if call.phase == "text"
    } == {("item-0", "item-1")}
    assert len({sample.num_unet_calls for sample in samples}) == 1


def test_seed_and_negative_prompt_matter(tiny_stack, adapters):
    items = [request(0), request(0, seed=5), request(0, negative_prompt="dark blur")]
    images = [sample.image.tobytes() for sample in make(tiny_stack, adapters, mode="decoupled").generate(items)]
    assert len(set(images)) == 3
    default = make(tiny_stack, adapters, mode="decoupled", negative_prompt="dark blur").generate([request(0)])[0]
    alone = make(tiny_stack, adapters, mode="decoupled").generate([items[2]])[0]
    assert default.image.tobytes() == alone.image.tobytes()


# --- callbacks and errors ---


def test_progress_reports_and_cancellation(tiny_stack, adapters, dinov2):
    calls = []
    make(tiny_stack, adapters, dinov2).generate([request()], on_step=calls.append)
    steps = [(call.phase, call.loop, call.step) for call in calls]
    assert steps == [
        *(("text", 0, step) for step in (1, 2, 3)),
        *(("transfer", loop, step) for loop in (0, 1, 2) for step in (4, 5)),
    ]
    assert calls[0].x0.shape == (1, *tiny_stack.latent_shape)
    assert calls[0].num_steps == 5

    def cancel(report):
        if report.phase == "transfer":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tiny_stack, adapters, dinov2).generate([request()], on_step=cancel)
    assert_same(  # nothing of the aborted batch stays active
        make(tiny_stack, adapters, mode="text_only").generate([request()])[0],
        make(tiny_stack, None, mode="text_only").generate([request()])[0],
    )


def test_an_empty_batch_is_no_work(tiny_stack, adapters):
    assert make(tiny_stack, adapters).generate([]) == []


def test_a_request_without_a_subject_is_refused_by_name(tiny_stack, adapters):
    with pytest.raises(ItemError, match="item-0") as error:
        make(tiny_stack, adapters).generate([request(subjects=())])
    assert error.value.code is ErrorCode.ROW_INVALID


def test_an_image_that_is_not_finite_is_refused_by_name(tiny_stack, adapters, monkeypatch):
    monkeypatch.setattr(
        tiny_stack.vae, "decode", lambda z: type("Output", (), {"sample": z.repeat(1, 1, 2, 2)[:, :3] * torch.nan})
    )
    with pytest.raises(ItemError, match="item-0") as error:
        make(tiny_stack, adapters).generate([request()])
    assert error.value.code is ErrorCode.GENERATION_FAILED


def test_missing_networks_are_configuration_errors(tiny_stack, adapters):
    with pytest.raises(ConfigurationError, match="adapter"):
        make(tiny_stack, None)
    with pytest.raises(ConfigurationError, match="DINOv2"):
        make(tiny_stack, adapters, loops=LoopConfig())


def test_plan_steps():
    assert plan_steps([41, 21, 1]) == (Step(1, 41, 21), Step(2, 21, 1), Step(3, 1, -1))


# --- from configuration ---


def test_load_generator(tiny_folder):
    model = ModelConfig(
        model=str(tiny_folder),
        adapter=str(tiny_folder / "adapter"),
        image_encoder=str(tiny_folder / "dinov2"),
        device="cpu",
    )
    generator = load_generator(model, sampler(loops=LoopConfig(min_loops=1, max_loops=2)))
    assert generator.generate([request()])[0].num_loops in (1, 2)
    without = model.model_copy(update={"adapter": "none"})
    text_only = load_generator(without, sampler(mode="text_only"))
    assert text_only.generate([request()])[0].num_loops == 0


@pytest.mark.parametrize("adapter", ["none", "auto", "/nowhere"])
def test_a_missing_adapter_says_what_to_do(tiny_folder, adapter):
    model = ModelConfig(model=str(tiny_folder), adapter=adapter, device="cpu")
    with pytest.raises(ConfigurationError, match=r"adapter (none|auto|/nowhere): .*"):
        load_generator(model, sampler())


def test_half_precision_networks(tiny_folder):
    model = ModelConfig(model=str(tiny_folder), adapter=str(tiny_folder / "adapter"), device="cpu", dtype="bf16")
    full = load_generator(model.model_copy(update={"dtype": "fp32"}), sampler()).generate([request()])[0]
    half = load_generator(model, sampler()).generate([request()])[0]
    assert np.abs(array(half.image) - array(full.image)).mean() < 8  # 8-bit levels; random weights amplify rounding
