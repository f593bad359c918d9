"""Measures against transformers' own networks and by-hand versions, and cases whose answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional as F  # noqa: N812

from ezigen.images import Picture, fit_square
from ezigen.metrics import Measurer, Shown
from ezigen.metrics.measures import best_match, cut_region, cut_subject, patches_of
from ezigen.models import load_text_image_encoder

SIDE = 48


@pytest.fixture(scope="module")
def clip(tiny_folder):
    return load_text_image_encoder(str(tiny_folder / "clip"), "cpu")


@pytest.fixture(scope="module")
def measurer(clip, dinov2):
    return Measurer(clip, dinov2)


def noise(seed, size=(SIDE, SIDE)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def disc(seed, box=(12, 12, 36, 36), size=(SIDE, SIDE), ground="white"):
    """A patterned disc, and its mask."""
    picture, mask = Image.new("RGB", size, ground), Image.new("L", size, 0)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    picture.paste(noise(seed, size), mask=mask)
    return Picture(picture, mask)


def hidden(dinov2, image):
    """transformers' own forward on a square picture of the network's size."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        return dinov2.network((pixels - dinov2.mean) / dinov2.std).last_hidden_state[0]


def squared(image, dinov2):
    return fit_square(Picture(image), dinov2.size_px).rgb


def cosine(one, other):
    return float(F.cosine_similarity(one, other, dim=0))


def test_identity_equals_transformers(measurer, clip, dinov2):
    image, subject, second = noise(0), disc(1), disc(2)
    found = measurer.measure([Shown(image, "a cup", (subject, second))])[0]
    made, given = (
        hidden(dinov2, squared(image, dinov2)),
        [hidden(dinov2, squared(s.rgb, dinov2)) for s in (subject, second)],
    )
    assert found["dino"] == pytest.approx(np.mean([cosine(made[0], g[0]) for g in given]), abs=1e-5)
    with torch.no_grad():
        tokens = clip.tokenizer(["a cup"], padding="max_length", max_length=16, return_tensors="pt")
        pixels = clip.processor([image, subject.rgb, second.rgb], return_tensors="pt").pixel_values
        output = clip.network(pixel_values=pixels, **tokens)
    images = output.image_embeds
    assert found["clip_t"] == pytest.approx(cosine(images[0], output.text_embeds[0]), abs=1e-5)
    assert found["clip_i"] == pytest.approx(np.mean([cosine(images[0], images[n]) for n in (1, 2)]), abs=1e-5)


def test_patches_are_matched_wherever_they_lie(measurer, dinov2):
    image, subject = noise(0), disc(1)
    found = measurer.measure([Shown(image, "a cup", (subject,))])[0]["dino_patch"]
    square = fit_square(subject, dinov2.size_px)
    made, given = hidden(dinov2, squared(image, dinov2))[1:], hidden(dinov2, square.rgb)[1:]
    side, mask = round(len(given) ** 0.5), np.asarray(square.mask)
    cell = dinov2.size_px // side
    best = [
        max(cosine(given[y * side + x], other) for other in made)
        for y in range(side)
        for x in range(side)
        if mask[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell].any()
    ]
    assert 0 < len(best) < len(given)
    assert found == pytest.approx(np.mean(best), abs=1e-5)


def test_order_of_patches_does_not_matter():
    tokens = torch.randn(9, 5)
    assert best_match(tokens, tokens[torch.randperm(9)]) == pytest.approx(1, abs=1e-6)
    assert best_match(tokens, torch.randn(9, 5)) < 1


def test_an_image_of_the_subject_itself_has_the_greatest_scores(measurer):
    subject, others = disc(1), [disc(seed) for seed in (2, 3)]
    same = measurer.measure([Shown(subject.rgb, "a cup", (subject,), mask=subject.mask)])[0]
    for name in ("clip_i", "dino", "dino_patch", "dino_sub"):
        assert same[name] == pytest.approx(1, abs=1e-3)
        for other in others:
            assert measurer.measure([Shown(other.rgb, "a cup", (subject,), mask=other.mask)])[0][name] < same[name]


def test_the_region_alone_counts(measurer, dinov2):
    """The subject elsewhere, in another scene."""
    subject = disc(1)
    scene = noise(9, (64, 64))
    place = Image.new("L", scene.size, 0)
    place.paste(subject.mask, (10, 6))
    scene.paste(subject.rgb, (10, 6), subject.mask)
    found = measurer.measure([Shown(scene, "a cup", (subject,), mask=place)])[0]
    assert found["dino_sub"] == pytest.approx(1, abs=1e-3)
    assert found["dino"] < 0.99
    cut = hidden(dinov2, squared(cut_region(scene, place), dinov2))[0]
    other = hidden(dinov2, squared(cut_subject(disc(2)), dinov2))[0]
    assert measurer.measure([Shown(scene, "a cup", (disc(2),), mask=place)])[0]["dino_sub"] == pytest.approx(
        cosine(cut, other), abs=1e-5
    )


def test_regions_are_cut_to_the_mask_on_white():
    picture, mask = Image.new("RGB", (20, 10), "red"), Image.new("L", (20, 10), 0)
    ImageDraw.Draw(mask).rectangle((4, 2, 8, 5), fill=255)
    assert cut_region(picture, mask).size == (5, 4)
    assert cut_region(picture, mask).getcolors() == [(20, (255, 0, 0))]


def test_a_subject_on_white_is_cut_out_without_a_mask():
    subject = disc(1)
    bare = np.asarray(cut_subject(Picture(subject.rgb)).size)
    assert np.abs(bare - np.asarray(cut_subject(subject).size)).max() <= 3
    assert cut_subject(Picture(Image.new("RGB", (9, 7), "white"))).size == (9, 7)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (72, 40)])
def test_a_background_is_measured_outside_of_the_mask(measurer, size):
    source = noise(0, size)
    mask = disc(0, (4, 4, 20, 20), size).mask
    untouched = Image.composite(noise(1, size), source, mask)
    found = measurer.measure([Shown(untouched, "a cup", (disc(1),), source, mask)])[0]
    assert (found["psnr"], found["ssim"]) == (100, pytest.approx(1, abs=0.2))
    lost = Image.composite(source, noise(2, size), mask)
    worse = measurer.measure([Shown(lost, "a cup", (disc(1),), source, mask)])[0]
    kept = np.asarray(mask) == 0
    expected = peak_signal_noise_ratio(np.asarray(lost)[kept], np.asarray(source)[kept], data_range=255)
    assert worse["psnr"] == pytest.approx(expected, abs=1e-9)
    assert worse["ssim"] < found["ssim"]
    assert worse["perceptual"] > found["perceptual"] > 0


def test_perceptual_change_is_a_cosine_of_patches_in_place(measurer, dinov2):
    size = (dinov2.size_px, dinov2.size_px)
    source, made = noise(0, size), noise(1, size)
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, 3, 3))
    found = measurer.measure([Shown(made, "a cup", (), source, mask)])[0]["perceptual"]
    one, other = hidden(dinov2, made)[1:], hidden(dinov2, source)[1:]
    changes = [1 - cosine(a, b) for a, b in zip(one, other, strict=True)]
    assert found == pytest.approx(np.mean(changes[1:]), abs=1e-5)


def test_many_at_once_are_measured_as_each_alone(measurer, clip, dinov2):
    subject = disc(1)
    shown = [
        Shown(noise(0), "a cup", (subject,)),
        Shown(noise(1, (40, 64)), "a shoe", (subject, disc(2)), noise(3, (40, 64)), disc(1, size=(40, 64)).mask),
        Shown(noise(2), "a cup", ()),
    ]
    together = measurer.measure(shown)
    assert [sorted(found) for found in together] == [
        ["clip_i", "clip_t", "dino", "dino_patch"],
        ["clip_i", "clip_t", "dino", "dino_patch", "dino_sub", "perceptual", "psnr", "ssim"],
        ["clip_t"],
    ]
    for one, found in zip(shown, together, strict=True):
        alone = Measurer(clip, dinov2).measure([one])[0]
        assert alone == pytest.approx(found, abs=1e-5)


def test_a_mask_over_everything_leaves_no_background(measurer):
    full = Image.new("L", (SIDE, SIDE), 255)
    found = measurer.measure([Shown(noise(0), "a cup", (disc(1),), noise(1), full)])[0]
    assert "dino_sub" in found
    assert not {"psnr", "ssim", "perceptual"} & set(found)


def test_without_encoders_pixels_are_left():
    mask = disc(0).mask
    assert set(Measurer(None, None).measure([Shown(noise(0), "", (), noise(1), mask)])[0]) == {"psnr", "ssim"}
    assert Measurer(None, None).measure([]) == []


def test_a_patch_counts_if_the_mask_touches_it():
    mask = Image.new("L", (8, 8), 0)
    mask.putpixel((5, 2), 1)
    assert patches_of(mask, 16).nonzero().flatten().tolist() == [6]
