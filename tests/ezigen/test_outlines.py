"""What SAM outlines of an edit: a real SAM of random weights, of zeros, and of weights that outline everything."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from ezigen.images.region import keep_main_parts
from ezigen.metrics import Measurer, Shown
from ezigen.metrics.outlines import MIN_SHARE, outline_subject
from ezigen.models import Segmenter, load_segmenter
from tests.ezigen.test_measures import SIDE, disc, noise
from tests.tiny_pipelines import build_tiny_sam

BOX = (10, 14, 38, 30)
"""Left, top, right and bottom of the mask; the last two lie outside."""


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return load_segmenter(str(build_tiny_sam(tmp_path_factory.mktemp("sam"))), device=torch.device("cpu"))


def answering(sam, bias):
    """The same SAM, whose masks are the same number everywhere, of the sign of `bias`."""
    network = copy.deepcopy(sam.network)
    for layers in network.mask_decoder.output_hypernetworks_mlps:
        torch.nn.init.zeros_(layers.proj_out.weight)
        torch.nn.init.constant_(layers.proj_out.bias, bias)
    features = network.mask_decoder.upscale_conv2
    torch.nn.init.zeros_(features.weight)
    torch.nn.init.ones_(features.bias)
    return Segmenter(network, sam.processor)


def mask(box=BOX, size=(SIDE, SIDE)):
    marked = Image.new("L", size, 0)
    marked.paste(255, box)
    return marked


def asked(sam, image, box, point):
    """transformers' own answer (H, W), of the mask that it trusts most."""
    inputs = sam.processor(
        images=image,
        input_boxes=[[[float(side) for side in box]]],
        input_points=[[[[float(value) for value in point]]]],
        input_labels=[[[1]]],
        return_tensors="pt",
    )
    with torch.no_grad():
        output = sam.network(**inputs, multimask_output=True)
    masks = sam.processor.image_processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0][0]
    return masks[int(output.iou_scores[0, 0].argmax())].numpy()


def test_it_is_sams_answer_within_the_box(sam):
    """A mask with a thin tail: the point that lies deepest is in the middle of the rest."""
    marked = mask((10, 14, 21, 25))
    marked.paste(255, (21, 19, 38, 20))
    compared = 0
    for seed in range(6):
        image = noise(seed)
        expected = np.zeros((SIDE, SIDE), bool)
        expected[14:25, 10:38] = asked(sam, image, (10, 14, 38, 25), (15, 19))[14:25, 10:38]
        found = outline_subject(sam, image, marked)
        if expected.sum() < MIN_SHARE * 11 * 28:
            assert found is None
            continue
        compared += 1
        assert (np.asarray(found) == 255 * keep_main_parts(expected)).all()
    assert compared


def test_everything_is_at_most_the_box(sam):
    found = outline_subject(answering(sam, 1.0), noise(1), mask())
    assert found.getbbox() == BOX
    assert (np.asarray(found)[BOX[1] : BOX[3], BOX[0] : BOX[2]] == 255).all()


def test_where_nothing_is_outlined_the_mask_has_to_do(sam):
    assert outline_subject(answering(sam, 0.0), noise(1), mask()) is None
    assert outline_subject(sam, noise(1), Image.new("L", (SIDE, SIDE), 0)) is None


@pytest.mark.parametrize("value", [255, 40])
def test_a_mask_may_cover_everything_and_be_weak(sam, value):
    found = outline_subject(answering(sam, 1.0), noise(1), Image.new("L", (SIDE, SIDE), value))
    assert found.getbbox() == (0, 0, SIDE, SIDE)


def test_the_region_is_what_is_compared_and_the_mask_what_is_kept(dinov2):
    subject, source, image = disc(1), noise(2), noise(3)
    region = disc(4, (14, 16, 30, 28)).mask
    measurer = Measurer(None, dinov2)
    plain = Shown(image, "a cup", (subject,), source, mask())
    by_mask, by_region, expected = measurer.measure(
        [
            plain,
            Shown(image, "a cup", (subject,), source, mask(), region),
            Shown(image, "a cup", (subject,), source, region),
        ]
    )
    assert by_region["dino_sub"] == pytest.approx(expected["dino_sub"], abs=1e-6)
    assert by_region["dino_sub"] != pytest.approx(by_mask["dino_sub"], abs=1e-3)
    for name in ("psnr", "ssim", "perceptual", "dino"):
        assert by_region[name] == by_mask[name]
        assert name == "dino" or by_mask[name] != expected[name]
