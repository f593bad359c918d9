"""Faces: where they are, subjects cropped to them, and whether two pictures show the same one."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance

from ezigen.config import ConfigurationError, ErrorCode, ItemError, ModelConfig, SamplerConfig
from ezigen.engine import Engine, EngineLimits, Networks
from ezigen.images import Picture
from ezigen.images.faces import crop_face, find_face
from ezigen.metrics import FaceScorer, Scorer, load_face_scorer, load_scorer
from ezigen.models import to_pixels
from ezigen.sampling.subjects import prepare_subjects
from ezigen.subject import SubjectFeatures
from tasks.catalog.stored_subjects import SubjectSource
from tasks.storage import Locations
from tests.ezigen.test_sampling import assert_same, make, request, sampler
from tests.people import FACE_CENTRE, astronaut, cat, someone_else

FOUND = (0, 1, 2, 3, 5, 6)
"""Of other people's faces those that are found."""

# ---- finding


def contains(box, point):
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


@pytest.mark.parametrize("side", [128, 512, 1500])
def test_the_face_is_found_at_any_size(side):
    scale = side / 512
    box = find_face(astronaut().resize((side, side)))
    assert contains(box, [scale * value for value in FACE_CENTRE])
    assert 60 * scale < box[2] - box[0] < 130 * scale


def test_the_largest_face_counts():
    both = Image.new("RGB", (812, 512), "grey")
    both.paste(astronaut(), (300, 0))
    both.paste(someone_else(0).resize((150, 150)), (0, 0))
    assert contains(find_face(both), (300 + FACE_CENTRE[0], FACE_CENTRE[1]))
    both.paste(someone_else(0), (0, 0))
    assert find_face(both)[2] < 300


@pytest.mark.parametrize("image", [cat(), Image.new("RGB", (8, 8)), Image.new("RGB", (900, 40), "white")])
def test_where_no_face_is_none_is_found(image):
    assert find_face(image) is None
    assert crop_face(Picture(image), 1.6) is None


def test_the_mask_is_cropped_with_the_picture():
    image = astronaut()
    x0, y0, x1, y1 = find_face(image)
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).rectangle((x0, y0, x1 - 1, y1 - 1), fill=255)
    cropped = crop_face(Picture(image, mask), 1.6)
    side = round(1.6 * (x1 - x0))
    assert cropped.rgb.size == cropped.mask.size == (side, side)
    left, top, right, bottom = cropped.mask.getbbox()
    assert cropped.rgb.crop((left, top, right, bottom)).tobytes() == image.crop((x0, y0, x1, y1)).tobytes()
    assert abs(left - (side - right)) <= 1
    assert abs(top - (side - bottom)) <= 1


def test_a_crop_stays_in_the_picture():
    x0, y0, x1, y1 = find_face(astronaut())
    image = astronaut().crop((x0 - 10, y0 - 10, x1 + 60, y1 + 90))
    left, _, right, _ = find_face(image)
    assert left < 0.3 * (right - left)  # so that the square has to be moved
    assert crop_face(Picture(image), 1.6).rgb.size == (round(1.6 * (right - left)),) * 2
    assert crop_face(Picture(image), 9.0).rgb.size == (min(image.size),) * 2


# ---- subjects


def person(index, image=None, **kwargs):
    return request(index, subjects=(Picture(image or astronaut()),), **kwargs)


def test_the_engine_and_the_sampler_crop_alike(tiny_stack, adapters):
    """Both make what they make of the picture that was cropped before."""
    mask = Image.new("L", (512, 512))
    ImageDraw.Draw(mask).rectangle((200, 90, 240, 150), fill=255)
    picture = Picture(astronaut(), mask)
    wanted = request(0, subjects=(picture,))
    setting = {"mode": "decoupled", "subject_tokens": "foreground"}
    by_sampler = make(tiny_stack, adapters, num_slots=2, subject_crop="face", **setting).generate([wanted])[0]
    networks = Networks(tiny_stack, adapters)
    engine = Engine(networks, sampler(subject_crop="face", **setting), EngineLimits(num_slots=2))
    (by_engine,) = engine.generate([wanted])
    assert_same(by_sampler, by_engine.sample)
    plain = make(tiny_stack, adapters, num_slots=2, **setting)
    assert_same(by_sampler, plain.generate([replace(wanted, subjects=(crop_face(picture, 1.6),))])[0])
    assert by_sampler.image.tobytes() != plain.generate([wanted])[0].image.tobytes()


def test_an_item_without_a_face_fails_alone(tiny_stack, adapters):
    requests = [
        person(0),
        person(1, cat()),
        request(2, subjects=(Picture(astronaut()), Picture(cat()))),
        person(3, someone_else(0)),
    ]
    engine = Engine(Networks(tiny_stack, adapters), sampler(subject_crop="face", mode="decoupled"))
    ended = {one.key: one for one in engine.generate(requests)}
    assert {key for key, one in ended.items() if one.sample} == {"item-0", "item-3"}
    says = "item-1: subject picture 1 of 1 shows no face .*; give another picture, or set sampler.subject_crop none"
    assert re.fullmatch(says, ended["item-1"].error.message)
    assert ended["item-2"].error.message.startswith("item-2: subject picture 2 of 2 shows no face")
    assert {ended[key].error.code for key in ("item-1", "item-2")} == {ErrorCode.FACE_MISSING}


def test_blank_slots_need_no_face():
    setting = SamplerConfig(subject_crop="face", subject_slots=3)
    made = prepare_subjects(person(0), setting, 32)
    assert len(made.subjects) == 3
    assert made.subjects[0].rgb.size == crop_face(Picture(astronaut()), 1.6).rgb.size


def test_features_of_whole_pictures_are_refused(tiny_stack, adapters):
    engine = Engine(Networks(tiny_stack, adapters), sampler(subject_crop="face"))
    with pytest.raises(ItemError, match=r"item-0: .*subject_crop face"):
        engine.add(person(0, features=(SubjectFeatures({}),)))
    with pytest.raises(ConfigurationError, match=r"sampler\.subject_crop face: .*inputs\.features_uri empty"):
        SubjectSource.of("store", Locations(), engine.sampler, model="mini", model_fingerprint="0" * 32)


def test_digests_are_those_of_before():
    assert "subject_crop" not in SamplerConfig().identity()
    assert "face_encoder" not in ModelConfig().identity()
    assert SamplerConfig(subject_crop="face").digest() != SamplerConfig().digest()


def test_without_opencv_the_run_does_not_start(tiny_stack, adapters, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    remedy = r"pip install 'ezigen-pipeline\[faces\]'"
    with pytest.raises(ConfigurationError, match=remedy):
        Engine(Networks(tiny_stack, adapters), sampler(subject_crop="face"))
    with pytest.raises(ConfigurationError, match=remedy):
        make(tiny_stack, adapters, subject_crop="face")
    with pytest.raises(ConfigurationError, match=remedy):
        load_face_scorer("mini", "cpu")
    make(tiny_stack, adapters)


# ---- identity


@pytest.fixture(scope="module")
def by_mini():
    return load_face_scorer("mini", "cpu")


def test_the_same_face_is_more_like_itself_than_others_are(by_mini):
    image = astronaut()
    again = {
        "shifted": image.transform(image.size, Image.Transform.AFFINE, (1, 0, -40, 0, 1, -25)),
        "larger": image.resize((700, 700)).crop((50, 0, 562, 512)),
        "darker": ImageEnhance.Brightness(image).enhance(0.85),
        "grey": image.convert("L").convert("RGB"),
    }
    same = {name: by_mini.score(other, [Picture(image)]) for name, other in again.items()}
    others = [by_mini.score(someone_else(number), [Picture(image)]) for number in FOUND]
    assert all(scores["face_found"] == 1 for scores in [*same.values(), *others])
    assert min(scores["face"] for scores in same.values()) > max(scores["face"] for scores in others)


def test_pictures_without_a_face_count_as_nothing_alike(by_mini):
    person, animal = Picture(astronaut()), Picture(cat())
    assert by_mini.score(person.rgb, [person])["face"] == pytest.approx(1, abs=1e-5)
    assert by_mini.score(person.rgb, [animal]) == {"face": 0, "face_found": 0}
    assert by_mini.score(animal.rgb, [person]) == {"face": 0, "face_found": 0}
    half = by_mini.score(person.rgb, [person, animal])
    assert half == {"face": pytest.approx(0.5, abs=1e-5), "face_found": 0.5}


def test_it_is_measured_where_it_is_asked_for(dinov2):
    model = ModelConfig(device="cpu", face_encoder="mini")
    image = astronaut()
    scores = load_scorer(model).score(image, "a photo of a person", [Picture(image)])
    assert scores["face"] == pytest.approx(1, abs=1e-5)
    assert set(scores) == {"clip_t", "dino", "face", "face_found"}
    assert load_scorer(model.model_copy(update={"face_encoder": ""})).face is None
    assert "face" not in Scorer(face=FaceScorer(dinov2)).score(image, "", [])


class MeanColour:
    """An encoder of its own kind, with everything that one needs."""

    size_px = 8

    def cls(self, images):
        assert images.shape[-2:] == (8, 8)
        return images.mean((2, 3))


def test_any_encoder_will_do():
    image, other = astronaut(), someone_else(0)
    wanted = [
        np.asarray(crop_face(Picture(each), 1.2).rgb.resize((8, 8), Image.Resampling.LANCZOS)).mean((0, 1)) / 127.5 - 1
        for each in (image, other)
    ]
    cosine = wanted[0] @ wanted[1] / np.linalg.norm(wanted[0]) / np.linalg.norm(wanted[1])
    assert FaceScorer(MeanColour()).score(image, [Picture(other)])["face"] == pytest.approx(cosine, abs=1e-5)


# ---- ONNX files, written without the library


def field(number, value):
    """One field of a protocol buffer: a whole number, or bytes (of a text, or of a message)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def value_info(name, shape):
    dims = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def write_onnx(path, weights, side=112):
    """vector = mean colour of each of 2 x 2 quarters, times weights (12, D)."""
    sizes = b"".join(field(8, side // 2) for _ in range(2))
    pool = [field(5, field(1, name) + sizes + field(20, 7)) for name in ("kernel_shape", "strides")]
    nodes = [
        field(1, "image") + field(2, "pooled") + field(4, "AveragePool") + b"".join(pool),
        field(1, "pooled") + field(2, "flat") + field(4, "Flatten"),
        field(1, "flat") + field(1, "weights") + field(2, "vector") + field(4, "MatMul"),
    ]
    tensor = b"".join(field(1, size) for size in weights.shape) + field(2, 1) + field(8, "weights")
    graph = b"".join(field(1, node) for node in nodes) + field(2, "faces")
    graph += field(5, tensor + field(9, weights.astype("<f4").tobytes()))
    graph += field(11, value_info("image", (1, 3, side, side))) + field(12, value_info("vector", (1, weights.shape[1])))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))


def test_a_face_network_as_onnx(tmp_path):
    weights = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    write_onnx(tmp_path / "arc.onnx", weights)
    scorer = load_face_scorer(str(tmp_path / "arc.onnx"))
    images = torch.stack([to_pixels(each.resize((112, 112))) for each in (astronaut(), cat())])
    quarters = images.numpy().reshape(2, 3, 2, 56, 2, 56).mean((3, 5)).reshape(2, 12)
    np.testing.assert_allclose(scorer.encoder.cls(images).numpy(), quarters @ weights, atol=1e-5)
    found = scorer.score(astronaut(), [Picture(someone_else(0))])
    vectors = [
        scorer.encoder.cls(
            to_pixels(crop_face(Picture(each), 1.2).rgb.resize((112, 112), Image.Resampling.LANCZOS))[None]
        )
        for each in (astronaut(), someone_else(0))
    ]
    assert found["face"] == pytest.approx(torch.cosine_similarity(*vectors).item(), abs=1e-6)


def test_an_onnx_file_that_will_not_do_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.onnx: no such file; give the path"):
        load_face_scorer(str(tmp_path / "none.onnx"))
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ConfigurationError, match=r"text\.onnx: OpenCV does not read"):
        load_face_scorer(str(tmp_path / "text.onnx"))
    write_onnx(tmp_path / "large.onnx", np.ones((12, 5)), side=224)
    with pytest.raises(ConfigurationError, match=r"large\.onnx: the network does not take \(1, 3, 112, 112\)"):
        load_face_scorer(str(tmp_path / "large.onnx"))
