"""A subject in a source picture: masks, inversion, background, and what is never touched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ezigen.config import EditConfig, ErrorCode, ItemError, LoopConfig, SamplerConfig
from ezigen.diffusion import CLEAN, NoiseSource, dpmpp_2m_step
from ezigen.images.canvas import canvas_size, make_canvas
from ezigen.models import TextCondition, encode_pictures, encode_prompts, to_pixels
from ezigen.models.exceptional import encode_exceptional
from ezigen.sampling import Edit
from ezigen.sampling.denoiser import Conditions, Denoiser, Step, plan_steps
from ezigen.sampling.editing import Background, begin_trajectory, plan_inversion
from tests.ezigen.test_sampling import array, make, picture, request, sampler

SIZES = [(32, 32), (61, 45), (40, 90)]


def mask_of(size, *boxes, value=255):
    mask = Image.new("L", size, 0)
    for box in boxes:
        ImageDraw.Draw(mask).rectangle(box, fill=value)
    return mask


def edit_of(index=0, size=(61, 45), mask=None, box=None):
    if mask is None and box is None:
        mask = mask_of(size, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    return Edit(picture(100 + index, size), mask, box)


def edit_request(index=0, edit=None, **changes):
    return request(index, edit=edit or edit_of(index), **changes)


def canvas(source_size, mask=None, box=None, feather=0.0):
    source = picture(0, source_size).rgb
    return make_canvas(source, mask, box, model_size_px=32, px_per_latent=4, feather=feather)


# --- masks and sizes ---


@pytest.mark.parametrize(
    ("source", "expected"),
    [((512, 512), (512, 512)), ((477, 631), (448, 592)), ((4000, 1000), (1024, 256)), ((100, 100), (512, 512))],
)
def test_a_source_keeps_its_proportions_and_the_model_its_number_of_pixels(source, expected):
    assert canvas_size(source, 512, 8) == expected
    assert all(side % 8 == 0 for side in expected)


def test_a_mask_of_any_size_marks_the_same_place():
    size = (60, 90)
    box = (12, 27, 35, 62)
    given = mask_of(size, box)
    for scale in (0.5, 1, 3):
        scaled = given.resize((round(60 * scale), round(90 * scale)), Image.Resampling.NEAREST)
        made = canvas(size, scaled)
        assert made.opacity.size == size
        difference = np.abs(array(made.opacity) - array(given)) > 127
        assert difference.mean() < 0.02
        assert made.cells.shape == made.latent_size == (made.picture.height // 4, made.picture.width // 4)
        assert 0.1 < made.cells.mean() < 0.4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1", "RGB", "P"])
def test_masks_in_grey_with_alpha_or_in_two_levels(mode):
    grey = mask_of((32, 32), (8, 8, 15, 15))
    if mode in ("RGBA", "LA"):
        given = Image.new(mode, (32, 32), 0 if mode == "LA" else (0, 0, 0, 0))
        given.putalpha(grey)
    else:
        given = grey.convert(mode)
    assert canvas((32, 32), given).opacity.tobytes() == grey.tobytes()


def test_a_box_is_a_mask_and_is_clipped_to_the_source():
    assert canvas((32, 32), box=(8, 4, 16, 20)).opacity.tobytes() == mask_of((32, 32), (8, 4, 15, 19)).tobytes()
    assert canvas((32, 32), box=(-5, 20, 99, 99)).opacity.tobytes() == mask_of((32, 32), (0, 20, 31, 31)).tobytes()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"mask": Image.new("L", (61, 45), 0)}, ErrorCode.MASK_MISMATCH, "marks nothing"),
        ({"mask": Image.new("L", (61, 45), 100)}, ErrorCode.MASK_MISMATCH, "marks nothing"),
        ({"mask": Image.new("RGBA", (61, 45), (255, 255, 255, 0))}, ErrorCode.MASK_MISMATCH, "marks nothing"),
        ({"mask": Image.new("L", (45, 61), 255)}, ErrorCode.MASK_MISMATCH, "45 x 61 px, its source 61 x 45 px"),
        ({"box": (70, 0, 90, 20)}, ErrorCode.MASK_MISMATCH, "outside the source"),
        ({"box": (20, 5, 20, 9)}, ErrorCode.ROW_INVALID, "no area"),
        ({"box": (0, 0, 9, 9), "mask": Image.new("L", (61, 45), 255)}, ErrorCode.ROW_INVALID, "both given"),
    ],
)
def test_a_wrong_mask_is_refused_by_name(tiny_stack, adapters, changes, code, words):
    with pytest.raises(ItemError, match=f"item-0.*{words}") as caught:
        make(tiny_stack, adapters).generate([edit_request(edit=edit_of(**changes))])
    assert caught.value.code is code


def test_a_source_that_is_a_thread_is_refused(tiny_stack, adapters):
    with pytest.raises(ItemError, match=r"10 x 200 px.*16 times") as caught:
        make(tiny_stack, adapters).generate([edit_request(edit=edit_of(size=(10, 200), box=(0, 0, 9, 9)))])
    assert caught.value.code is ErrorCode.IMAGE_TOO_SMALL


def test_editing_needs_a_subject(tiny_stack, adapters):
    with pytest.raises(ItemError, match="item-0: mode text_only"):
        make(tiny_stack, None, mode="text_only").generate([edit_request()])
    with pytest.raises(ItemError, match=r"item-0: .*needs at least one subject"):
        make(tiny_stack, adapters).generate([edit_request(subjects=())])


def test_one_marked_pixel_of_a_large_picture_is_not_lost():
    made = canvas((640, 640), mask_of((640, 640), (333, 100, 333, 100)))
    assert made.cells.sum() == 1
    assert made.cells[100 * 8 // 640, 333 * 8 // 640]


def test_the_soft_edge_is_as_wide_as_it_says_and_stays_off_the_rim():
    """A ramp down from the mask's edge over feather x the shorter side, inside nothing but the mask."""
    mask = mask_of((100, 100), (0, 30, 49, 69))
    opacity = array(canvas((100, 100), mask, feather=0.1).opacity)
    assert (opacity[30:70, :50] == 255).all()
    ramp = opacity[50, 50:60]
    assert (np.diff(ramp) < 0).all()
    assert 200 < ramp[0] < 255
    assert (opacity[50, 60:] == 0).all()
    assert (opacity[:20] == 0).all()
    assert (opacity[31:69, 0] == 255).all()
    soft = canvas((100, 100), Image.new("L", (100, 100), 200), feather=0.1)
    assert (array(soft.opacity) == 200).all()


# --- inversion ---


@pytest.mark.parametrize("kind", ["tiny_stack", "xl_stack"])
def test_the_exceptional_prompt_is_one_token_without_positions(request, kind):
    stack = request.getfixturevalue(kind)
    text = encode_exceptional(stack)
    embeddings, usual = text.tokens, encode_prompts(stack, ["a cup"])
    assert embeddings.shape == usual.tokens.shape
    assert (text.pooled is None) == (usual.pooled is None)
    assert torch.allclose(embeddings, embeddings[:, :1].expand_as(embeddings), atol=1e-5)
    vocabulary = stack.text_encoder.config.vocab_size
    assert torch.equal(embeddings, encode_exceptional(stack, 7788 % vocabulary).tokens)
    assert not torch.allclose(embeddings, encode_exceptional(stack, 7789).tokens, atol=1e-3)
    after = encode_prompts(stack, ["a cup"]).tokens  # positions are back
    assert not torch.allclose(after, after[:, :1].expand_as(after), atol=1e-3)


def test_the_way_up_mirrors_the_way_down():
    steps = plan_steps([381, 361, 341, 1])
    assert plan_inversion(steps) == (Step(1, 1, 341), Step(2, 341, 361), Step(3, 361, 381))
    assert plan_inversion(plan_steps([1])) == ()
    source = torch.zeros(1)
    assert begin_trajectory(source, steps) == {CLEAN: source, 1: source}


class Oracle(torch.nn.Module):
    """A UNet that knows the image: its output means this x_0 for any sample."""

    def __init__(self, schedule, x0):
        super().__init__()
        self.schedule, self.x0 = schedule, x0

    def forward(self, sample, t, _text, **_options):
        alpha_bar = self.schedule.alpha_bar(t, sample)
        return ((sample - alpha_bar**0.5 * self.x0) / (1 - alpha_bar) ** 0.5,)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_with_an_oracle_inversion_and_denoising_give_the_source_back(tiny_stack, solver):
    schedule = replace(tiny_stack.schedule, final_alpha_cumprod=1.0)
    source = torch.randn(2, 4, 8, 12)
    stack = replace(tiny_stack, unet=Oracle(schedule, source), schedule=schedule)
    denoiser = Denoiser(stack, None, sampler(solver=solver, guidance_scale=1.0), NoiseSource())
    steps = plan_steps(schedule.timesteps(20))[8:]
    text = TextCondition(torch.zeros(2, 1, 1))
    *_, up = denoiser.invert(source, text, plan_inversion(steps))
    assert (up.latents - source).abs().mean() > 0.1
    *_, down = denoiser.run(up.latents, Conditions(text, text, (0, 0)), steps, None)
    assert torch.allclose(down.latents, source, atol=1e-4)


def test_the_background_is_the_source_at_every_timestep(tiny_stack, adapters):
    """The whole procedure against its formulas; guidance is that of edits."""
    made = make(tiny_stack, adapters, guidance_scale=7.0, edit=EditConfig(guidance_scale=3.0))
    seen = []
    item = edit_request()
    sample = made.generate([item], on_step=lambda report: seen.append((report.phase, report.loop, report.step)))[0]
    assert [phase for phase, _, _ in seen] == ["invert"] + 3 * ["transfer"] * 2
    assert [step for phase, _, step in seen if phase == "transfer"] == 3 * [4, 5]
    assert sample.num_unet_calls == 1 + 1 + 3 * 2 * 2
    assert (sample.num_loops, sample.stop_reason, sample.sketch) == (2, "fixed", None)
    assert np.abs(array(sample.image) - array(written_out(tiny_stack, adapters, item, 3.0))).max() <= 2


def written_out(stack, adapters, item, guidance, num_loops=2):
    """One edit by its formulas: two steps, 201 and 1, at batch size 1."""
    from ezigen.models import decode_latents, to_image
    from ezigen.sampling.subjects import encode_subject
    from ezigen.subject import SubjectEncoder

    made = make_canvas(item.edit.source.rgb, item.edit.mask, None, model_size_px=32, px_per_latent=4, feather=0.02)
    x0 = encode_pictures(stack, to_pixels(made.picture)[None])
    features = encode_subject(SubjectEncoder(stack, NoiseSource()), item.subjects[0], "cup", 32, SamplerConfig())
    kv = adapters.subject_kv(features)
    positive, negative = encode_prompts(stack, [item.prompt]), encode_prompts(stack, [""])
    cells = torch.from_numpy(made.cells)[None, None].float()
    (low, high), schedule = ((1, 201), stack.schedule)
    abar = {t: schedule.alphas_cumprod[t] for t in (low, high)}

    def eps(x, t, text, subject=None):
        t = torch.tensor([t])
        if subject is None:
            return stack.unet(x, t, text.tokens).sample
        with adapters.active(subject):
            return stack.unet(x, t, text.tokens).sample

    with torch.no_grad():
        foreseen = (x0 - (1 - abar[low]) ** 0.5 * eps(x0, low, encode_exceptional(stack))) / abar[low] ** 0.5
        inverted = dpmpp_2m_step(
            schedule, foreseen, x0, torch.tensor([low]), torch.tensor([high]), None, torch.tensor([-1])
        )
        x = inverted
        for loop in range(num_loops + 1):
            if loop:
                noise = NoiseSource().noise(item.seed, "renoise", loop, 0, x.shape[1:])
                x = abar[high] ** 0.5 * x + (1 - abar[high]) ** 0.5 * noise
                x = cells * x + (1 - cells) * inverted
            for t, next_abar, background in (
                (high, abar[low], x0),
                (low, torch.tensor(schedule.final_alpha_cumprod), x0),
            ):
                free = eps(x, t, negative, kv)
                guided = free + guidance * (eps(x, t, positive, kv) - free)
                clean = (x - (1 - abar[t]) ** 0.5 * guided) / abar[t] ** 0.5
                x = next_abar**0.5 * clean + (1 - next_abar) ** 0.5 * guided
                x = cells * x + (1 - cells) * background
        return made.paste(to_image(decode_latents(stack, x)[0].clamp(-1, 1)))


def test_blending_chooses_by_cell():
    cells = torch.tensor([[[[True, False]]]])
    background = Background(cells, {CLEAN: torch.zeros(1, 2, 1, 2), 21: torch.ones(1, 2, 1, 2)})
    latents = torch.full((1, 2, 1, 2), 5.0)
    assert background.blend(latents, 21).tolist() == [[[[5, 1]], [[5, 1]]]]
    assert background.blend(latents, CLEAN).tolist() == [[[[5, 0]], [[5, 0]]]]


# --- the whole edit ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["full_injection", "decoupled", "iterative"])
def test_outside_the_mask_the_result_is_the_source_bit_for_bit(tiny_stack, adapters, dinov2, size, mode):
    """The mask has two parts, one of them at the corner."""
    mask = mask_of(size, (0, 0, size[0] // 4, size[1] // 4), (size[0] // 2, size[1] // 2, size[0] - 8, size[1] - 8))
    item = edit_request(edit=edit_of(size=size, mask=mask))
    loops = LoopConfig(min_loops=1, max_loops=2)
    sample = make(tiny_stack, adapters, dinov2, mode=mode, loops=loops).generate([item])[0]
    assert sample.image.size == size
    source, result = array(item.edit.source.rgb), array(sample.image)
    feather = round(0.02 * min(size) / 2)
    near = np.asarray(mask) > 0
    for _ in range(2 * feather):  # a pixel further in every direction
        height, width = near.shape
        padded = np.pad(near, 1)
        near = np.logical_or.reduce([padded[y : y + height, x : x + width] for y, x in np.ndindex(3, 3)])
    assert (result[~near] == source[~near]).all()
    for part in (result[: size[1] // 4, : size[0] // 4] - source[: size[1] // 4, : size[0] // 4], result - source):
        assert np.abs(part).max() > 20
    assert sample.num_loops == (len(sample.similarities) if mode == "iterative" else 0)


def test_without_a_mask_the_source_is_a_sketch_and_everything_is_drawn(tiny_stack, adapters):
    everything = make(tiny_stack, adapters).generate([edit_request(edit=Edit(picture(9, (45, 61))))])[0]
    full = edit_request(edit=Edit(picture(9, (45, 61)), Image.new("L", (45, 61), 255)))
    assert everything.image.size == (45, 61)
    assert everything.image.tobytes() == make(tiny_stack, adapters).generate([full])[0].image.tobytes()
    assert np.abs(array(everything.image) - array(picture(9, (45, 61)).rgb)).mean() > 5


def test_edits_and_images_of_all_sizes_share_a_batch(tiny_stack, adapters):
    mixed = [
        request(0),
        edit_request(1),
        edit_request(2, edit_of(2, (40, 90))),
        request(3),
        edit_request(3, edit_of(1, box=(30, 5, 60, 40)), key="item-4"),
    ]
    together = make(tiny_stack, adapters, num_slots=3).generate(mixed)
    for item, sample in zip(mixed, together, strict=True):
        assert sample.key == item.key
        alone = make(tiny_stack, adapters, num_slots=3).generate([item])[0]
        assert sample.image.tobytes() == alone.image.tobytes()


def test_seed_prompt_subject_and_place_matter(tiny_stack, adapters):
    made = make(tiny_stack, adapters)
    base = edit_request()
    others = [
        replace(base, seed=5),
        replace(base, prompt="dark blur"),
        replace(base, subjects=(picture(7),)),
        replace(base, edit=edit_of(box=(2, 2, 30, 30))),
        replace(base, edit=edit_of(1)),
    ]
    images = {sample.image.tobytes() for item in [base, *others] for sample in made.generate([item])}
    assert len(images) == 6


# --- settings ---


def test_settings_of_edits_concern_edits_alone():
    plain, other = SamplerConfig(), SamplerConfig(edit=EditConfig(guidance_scale=4.0, feather=0.1))
    assert plain.digest() == other.digest() == "41b60be3319752d113847959f137617e"  # what it was before edits existed
    assert plain.edit.digest() != other.edit.digest()
    assert other.is_guided(1, edits=True)
    assert not SamplerConfig(edit=EditConfig(guidance_scale=1.0)).is_guided(1, edits=True)
    assert not SamplerConfig(guidance_scale=1.0).is_guided(1)
    assert SamplerConfig(guidance_scale=1.0).is_guided(1, edits=True)
