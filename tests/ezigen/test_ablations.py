"""Every switch of the ablations does what it says and nothing else: against the procedure written out by hand."""

from dataclasses import dataclass, replace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ezigen.config import (
    ConfigurationError,
    EditConfig,
    ErrorCode,
    ItemError,
    LoopConfig,
    ModelConfig,
    SamplerConfig,
    TrainingConfig,
    embedded,
    paper,
    released,
)
from ezigen.diffusion import CLEAN, NoiseSource
from ezigen.images import Picture
from ezigen.models import decode_latents, encode_pictures, encode_prompts, load_text_image_encoder, to_image, to_pixels
from ezigen.sampling import Generator, load_generator
from ezigen.sampling.denoiser import plan_steps
from ezigen.sampling.editing import make_background
from ezigen.sampling.subjects import fit_subject, prepare_subjects
from ezigen.subject import SubjectFeatures, record_norms
from tasks.catalog.estimates import expected_unet_calls
from tasks.catalog.stored_subjects import SubjectSource
from tasks.storage import Locations
from tests.ezigen.test_editing import canvas, edit_request, mask_of
from tests.ezigen.test_sampling import array, picture, request, sampler

NEGATIVE = "dark blur"


@dataclass(frozen=True)
class ByHand:
    """Two loops of five DDIM steps, three of them a sketch, with diffusers' schedulers and plain UNet calls.

    slots: pictures that are attended to and the prompts that they are encoded under; seeds: of their noise, as (item
    seed, number); t_sub: a timestep or None for each step's own; renoise: the timestep that loops are noised to.
    """

    stack: object
    adapters: object
    slots: list[tuple[Image.Image, str]]
    seeds: list[tuple[int, int]]
    t_sub: int | None = 1
    renoise: int = 201
    through_pixels: bool = False
    negative_in_loops: str = NEGATIVE

    def features(self, t):
        parts = []
        for (image, prompt), (seed, number) in zip(self.slots, self.seeds, strict=True):
            latents = encode_pictures(self.stack, to_pixels(image)[None])
            noise = NoiseSource().noise(seed, "subject", 0, number, latents.shape[1:])[None]
            t_sub = torch.tensor([t if self.t_sub is None else self.t_sub])
            noisy = diffusers.DDPMScheduler(**BETAS).add_noise(latents, noise, t_sub)
            with record_norms(self.stack.unet) as tokens:
                self.stack.unet(noisy, t_sub, encode_prompts(self.stack, [prompt]).tokens)
            parts.append(SubjectFeatures(dict(tokens)))
        return SubjectFeatures.concatenate(parts)

    def denoise(self, x, first, last, negative, *, with_subject):
        scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
        scheduler.set_timesteps(5)
        text = encode_prompts(self.stack, [negative, request().prompt]).tokens
        for t in scheduler.timesteps[first:last]:
            if with_subject:
                self.adapters.activate(self.features(int(t)))
            low, high = self.stack.unet(torch.cat([x, x]), t, text).sample.chunk(2)
            self.adapters.deactivate()
            x = scheduler.step(low + 4.0 * (high - low), t, x).prev_sample
        return x

    @torch.no_grad()
    def images(self):
        x = NoiseSource().noise(0, "initial", 0, 0, self.stack.latent_shape)[None]
        x = self.denoise(x, 0, 3, NEGATIVE, with_subject=False)
        x = self.denoise(x, 3, 5, NEGATIVE, with_subject=True)
        images = [self.decode(x)]
        for loop in (1, 2):
            if self.through_pixels:
                x = encode_pictures(self.stack, to_pixels(images[-1])[None])
            noise = NoiseSource().noise(0, "renoise", loop, 0, x.shape[1:])[None]
            x = diffusers.DDPMScheduler(**BETAS).add_noise(x, noise, torch.tensor([self.renoise]))
            x = self.denoise(x, 3, 5, self.negative_in_loops, with_subject=True)
            images.append(self.decode(x))
        return images

    def decode(self, latents):
        return to_image(decode_latents(self.stack, latents)[0])


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FIXED = {"stop": "fixed", "num_loops": 2}
CUP, BLANK = "a photo of a cup.", "a photo of a ."


def padded():
    square = Image.new("RGB", (40, 40), "white")
    square.paste(picture(0).rgb, (0, 5))
    return square.resize((32, 32), Image.Resampling.LANCZOS)


def white():
    return Image.new("RGB", (32, 32), "white")


SWITCHES = {
    "none": ({}, {}),
    "adaptive": ({"t_sub": "adaptive"}, {"t_sub": None}),
    "subject noise": ({"subject_noise": "item"}, {"seeds": [(0, 0)]}),
    "squash": (
        {"subject_fit": "squash"},
        {"slots": [(picture(0).rgb.resize((32, 32), Image.Resampling.LANCZOS), CUP)]},
    ),
    "slots": (
        {"subject_slots": 3},
        {"slots": [(padded(), CUP), (white(), BLANK), (white(), BLANK)], "seeds": [(0, 0)] * 3},
    ),
    "slots with noise": (
        {"subject_slots": 2, "subject_noise": "item"},
        {"slots": [(padded(), CUP), (white(), BLANK)], "seeds": [(0, 0), (0, 1)]},
    ),
    "renoise": ({"loops": LoopConfig(**FIXED, renoise_timestep=400)}, {"renoise": 400}),
    "pixels": ({"loops": LoopConfig(**FIXED, through_pixels=True)}, {"through_pixels": True}),
    "negative prompt": ({"loops": LoopConfig(**FIXED, keeps_negative_prompt=False)}, {"negative_in_loops": ""}),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_what_it_says(tiny_stack, adapters, name):
    changes, by_hand = SWITCHES[name]
    setting = sampler(**{"loops": LoopConfig(**FIXED), "negative_prompt": NEGATIVE, **changes})
    sample = Generator(tiny_stack, adapters, None, setting).generate([request()])[0]
    given = {"slots": [(padded(), CUP)], "seeds": [(0, 0)], **by_hand}
    expected = ByHand(tiny_stack, adapters, **given).images()
    assert len(sample.loops) == 3
    for image, by_hand_image in zip(sample.loops, expected, strict=True):
        assert np.abs(array(image) - array(by_hand_image)).max() <= 1
    num_pictures = max(1, setting.subject_slots)
    encodings = num_pictures * (2 * 3 if setting.is_adaptive else 1)
    assert sample.num_unet_calls == encodings + 2 * (3 + 2 * 3)
    assert expected_unet_calls(setting) == sample.num_unet_calls


def test_every_switch_changes_the_image(tiny_stack, adapters):
    """The noise of subjects too, where the item's seed is not the fixed one."""

    def image(**changes):
        setting = sampler(**{"loops": LoopConfig(**FIXED), "negative_prompt": NEGATIVE, **changes})
        return Generator(tiny_stack, adapters, None, setting).generate([request(0, seed=5)])[0].image.tobytes()

    made = {name: image(**changes) for name, (changes, _) in SWITCHES.items()}
    assert len(set(made.values())) == len(made)


def test_images_agree_by_clip(tiny_stack, adapters, tiny_folder):
    """CLIP's global vectors of the 8-bit pictures, by the network's own forward call."""
    encoder = load_text_image_encoder(str(tiny_folder / "clip"), "cpu")
    loops = LoopConfig(measure="clip", min_loops=2, max_loops=2)
    setting = sampler(loops=loops)
    model = ModelConfig(model=str(tiny_folder), adapter=str(tiny_folder / "adapter"), device="cpu")
    loaded = load_generator(model.model_copy(update={"image_encoder": str(tiny_folder / "clip")}), setting)
    sample = loaded.generate([request()])[0]
    pixels = encoder.processor(list(sample.loops), return_tensors="pt").pixel_values
    with torch.no_grad():
        vectors = encoder.network.visual_projection(encoder.network.vision_model(pixels).pooler_output)
    expected = torch.cosine_similarity(vectors[1:], vectors[:-1]).tolist()
    assert sample.similarities == pytest.approx(expected, abs=1e-5)
    assert (sample.num_loops, len(sample.similarities)) == (2, 2)


def test_released_is_each_of_its_switches():
    """Nothing else than what its docstring names; the extra residual is the adapter's."""
    made, base = released(), paper()
    changed = {name for name in SamplerConfig.model_fields if getattr(made, name) != getattr(base, name)}
    assert changed == {
        "solver", "negative_prompt", "subject_noise", "subject_fit", "subject_slots", "loops", "edit",
    }  # fmt: skip
    changed = {name for name in LoopConfig.model_fields if getattr(made.loops, name) != getattr(base.loops, name)}
    assert changed == {"max_loops", "measure", "renoise_timestep", "through_pixels", "keeps_negative_prompt"}


# --- edits ---


def test_a_background_behind(tiny_stack):
    """Two steps behind is the source at the timestep two before, and never noisier than at the first."""
    steps = plan_steps([801, 601, 401, 201, 1])
    trajectory = {t: torch.full((1, 4, 8, 8), float(t)) for t in (801, 601, 401, 201, 1, CLEAN)}
    made = canvas((32, 32), mask_of((32, 32), (0, 0, 3, 3)))
    edit = make_background(made, trajectory, steps, EditConfig(background_lag=2)).trajectory
    assert {t: latents.unique().tolist() for t, latents in edit.items()} == {
        801: [801.0], 601: [801.0], 401: [801.0], 201: [601.0], 1: [401.0], CLEAN: [CLEAN],
    }  # fmt: skip
    plain = make_background(made, trajectory, steps, EditConfig())
    assert plain.trajectory is trajectory
    assert plain.cells.shape == (1, 1, 8, 8)
    open_end = make_background(made, trajectory, steps, EditConfig(keeps_background=False))
    latents = torch.ones(1, 4, 8, 8)
    assert open_end.blend(latents, CLEAN) is latents
    assert torch.equal(open_end.blend(latents, 1), plain.blend(latents, 1))


def test_a_background_that_is_not_kept(tiny_stack, adapters):
    setting = sampler(mode="decoupled")
    item = edit_request()
    kept = Generator(tiny_stack, adapters, None, setting).generate([item])[0]
    loose = setting.model_copy(update={"edit": EditConfig(keeps_background=False)})
    left = Generator(tiny_stack, adapters, None, loose).generate([item])[0]
    source, corner = array(item.edit.source.rgb), np.s_[:8, :8]
    assert kept.image.size == left.image.size == item.edit.source.rgb.size
    assert (array(kept.image)[corner] == source[corner]).all()
    assert (array(left.image)[corner] != source[corner]).any()


# --- the default changes nothing ---


def test_digests_of_earlier_configurations_hold():
    """Written down before the switches existed: keys of items that were made then."""
    assert [c.digest() for c in (paper(), embedded(), EditConfig(), TrainingConfig())] == [
        "41b60be3319752d113847959f137617e",
        "92f55008109557dd01e5af0d957fbb0f",
        "a6c50c92a43fafbd2b61a39cc6122780",
        "10306e1d57d97ac8ac8470396f6db285",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"t_sub": "adaptive"},
        {"subject_noise": "item"},
        {"subject_fit": "squash"},
        {"subject_slots": 1},
        {"loops": LoopConfig(measure="clip")},
        {"loops": LoopConfig(renoise_timestep=400)},
        {"loops": LoopConfig(through_pixels=True)},
        {"loops": LoopConfig(keeps_negative_prompt=False)},
    ],
    ids=str,
)
def test_every_switch_makes_new_items(changes):
    made = SamplerConfig(**changes)
    assert made.digest() != paper().digest()
    assert SamplerConfig.model_validate_json(made.model_dump_json()) == made


# --- pictures ---


def test_squashed_pictures_fill_the_square_and_take_their_mask_along():
    rgb, mask = Image.new("RGB", (40, 20), "white"), Image.new("L", (40, 20), 0)
    rgb.paste((200, 0, 0), (20, 0, 40, 20))
    mask.paste(255, (20, 0, 40, 20))
    made = fit_subject(Picture(rgb, mask), 32, SamplerConfig(subject_fit="squash"))
    assert made.rgb.size == made.mask.size == (32, 32)
    assert made.rgb.getpixel((24, 1)) == (200, 0, 0)
    assert (made.mask.getpixel((24, 31)), made.mask.getpixel((8, 16))) == (255, 0)
    again = fit_subject(made, 32, SamplerConfig(subject_fit="squash"))
    assert again.rgb.tobytes() == made.rgb.tobytes()


def test_slots_that_are_not_there():
    several = request(0, subjects=(picture(0), picture(1)), subject_classes=("cup", "dog"))
    filled = prepare_subjects(several, SamplerConfig(subject_slots=4), 32)
    assert filled.classes == ("cup", "dog", "", "")
    assert [p.rgb.size for p in filled.subjects[2:]] == [(32, 32)] * 2
    assert prepare_subjects(several, SamplerConfig(subject_slots=2), 32) is several
    assert prepare_subjects(several, SamplerConfig(subject_slots=1), 32) is several
    mixed = replace(several, mix=(0.5, 0.5))
    assert prepare_subjects(mixed, SamplerConfig(subject_slots=4), 32) is mixed
    with pytest.raises(ItemError, match="needs at least one subject picture") as caught:
        prepare_subjects(request(0, subjects=()), SamplerConfig(subject_slots=4), 32)
    assert caught.value.code is ErrorCode.ROW_INVALID


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"t_sub": "adaptive"}, "t_sub adaptive"),
        ({"subject_noise": "item"}, "subject_noise item"),
        ({"subject_fit": "squash"}, "subject_fit squash"),
    ],
)
def test_a_feature_store_is_refused_where_it_holds_no_such_features(changes, named):
    setting = SamplerConfig(**changes)
    with pytest.raises(ConfigurationError, match=rf"sampler\.{named}: .*inputs\.features_uri empty"):
        SubjectSource.of("store", Locations(), setting, model="mini", model_fingerprint="0" * 32)
