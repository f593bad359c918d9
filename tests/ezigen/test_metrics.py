import logging

import numpy as np
import pytest
import torch
from PIL import Image

from ezigen.config import ModelConfig
from ezigen.images import Picture
from ezigen.metrics import Scorer, load_scorer
from ezigen.models import load_text_image_encoder, to_image, to_pixels


@pytest.fixture(scope="module")
def clip(tiny_folder):
    return load_text_image_encoder(str(tiny_folder / "clip"), "cpu")


def noise(seed, side=48):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_clip_t_is_the_cosine_of_the_library_features(clip, tiny_folder):
    from transformers import CLIPModel

    image, prompt = noise(0), "a photo of a cup on the beach"
    model = CLIPModel.from_pretrained(tiny_folder / "clip").eval()
    tokens = clip.tokenizer([prompt], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=clip.processor([image], return_tensors="pt").pixel_values, **tokens)
    expected = output.logits_per_image.item() / model.logit_scale.exp().item()
    assert Scorer(clip=clip).score(image, prompt, [])["clip_t"] == pytest.approx(expected, abs=1e-5)


def test_dino_is_one_for_the_subject_itself_and_a_mean_over_its_pictures(dinov2):
    scorer = Scorer(dino=dinov2)
    image, other = noise(1), noise(2)
    assert scorer.score(image, "", [Picture(image)])["dino"] == pytest.approx(1, abs=1e-3)
    alone = scorer.score(image, "", [Picture(other)])["dino"]
    assert scorer.score(image, "", [Picture(image), Picture(other)])["dino"] == pytest.approx((1 + alone) / 2, abs=1e-3)


def test_scores_are_left_out_without_encoders(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with caplog.at_level(logging.WARNING):
        scorer = load_scorer(ModelConfig(model=str(tmp_path), device="cpu"))
    assert scorer.score(noise(0), "a cup", [Picture(noise(0))]) == {}
    assert "hf download" in caplog.text


def test_long_texts_are_cut(clip):
    assert clip.texts(["a cup " * 100]).shape == (1, 16)


def test_pixels_and_back():
    image = noise(3)
    pixels = to_pixels(image)
    assert pixels.shape == (3, 48, 48)
    assert -1 <= pixels.min() < pixels.max() <= 1
    assert to_image(pixels).tobytes() == image.tobytes()
    assert to_image(pixels * 3).getextrema() == ((0, 255),) * 3
