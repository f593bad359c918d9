"""The line that the page of an evaluation looks at closely."""

import base64
import io
from dataclasses import replace

import pytest
from PIL import Image

from tasks.evaluation.benchmarks import BenchmarkCase
from tasks.evaluation.paper import ENCODERS, MODES, Variant
from tasks.evaluation.showing import MAX_WORST, look_closer
from tasks.evaluation.tables import ScoredImage
from tasks.storage import Locations
from tests.evaluation.conftest import put_picture

NUM_CASES = MAX_WORST + 2


def make_case(number, source_uri=""):
    return BenchmarkCase(f"s{number}/p", f"s{number}", "p", ("subject.png",), (), "mug", "a mug", 0, source_uri)


def scored(variant, number, **scores):
    return ScoredImage(variant, f"s{number}/p", f"s{number}", "p", scores)


@pytest.fixture
def pictures(tmp_path):
    """Blue is low in subject.png, and the red of each image is ten times its number."""
    put_picture(tmp_path / "subject.png", 250)
    for number in range(NUM_CASES):
        put_picture(tmp_path / f"{number}.png", 10 * number)
    return Locations(allowed_roots=(str(tmp_path),), base_uri=str(tmp_path))


def red(uri):
    """Of the picture in a data URI."""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return picture.convert("RGB").getpixel((8, 6))[0]


def look(images, pictures, *, table=MODES, cases=None):
    cases = cases or {case.case_id: case for case in map(make_case, range(NUM_CASES))}
    uris = {(one.variant, one.case_id): f"{one.case_id[1:].partition('/')[0]}.png" for one in images}
    return look_closer(table, images, cases, uris, pictures)


def test_it_is_the_last_line_with_the_worst_of_each_measure_and_their_pictures(pictures):
    images = [scored("iterative", n, dino=0.9 - n / 100, clip_t=n / 100) for n in range(NUM_CASES)]
    closer = look([*images, scored("text_only", 0, dino=0.0)], pictures)
    assert (closer.table, closer.line) == ("Modes of generation", "decoupled, loops until they settle")
    assert closer.images == tuple(images)
    assert list(closer.worst) == ["dino", "clip_t"]
    assert [one.case.case_id for one in closer.worst["dino"]] == [f"s{n}/p" for n in range(9, 1, -1)]
    assert [red(one.made) for one in closer.worst["clip_t"]] == pytest.approx([10 * n for n in range(8)], abs=4)
    assert red(closer.worst["dino"][0].given) == pytest.approx(250, abs=4)


def test_a_line_of_another_adapter_is_not_looked_at(pictures):
    images = [scored("encoder_clip", 0, dino=0.1), scored("full_injection", 1, dino=0.2)]
    assert look(images, pictures, table=ENCODERS).line == "the frozen UNet"


def test_another_method_is_not_looked_at(pictures):
    table = replace(MODES, variants=(*MODES.variants, Variant("SD", "SD", is_external=True)))
    images = [scored("iterative", 0, dino=0.1), scored("SD", 0, dino=0.2)]
    assert look(images, pictures, table=table).line == "decoupled, loops until they settle"


def test_an_edit_is_shown_beside_its_source(pictures):
    closer = look([scored("iterative", 1, dino=0.5)], pictures, cases={"s1/p": make_case(1, "7.png")})
    assert red(closer.worst["dino"][0].given) == pytest.approx(70, abs=4)


def test_pictures_that_cannot_be_read_are_left_out(pictures, tmp_path):
    (tmp_path / "1.png").write_bytes(b"nothing")
    closer = look([scored("iterative", 1, dino=0.5)], pictures)
    assert closer.worst["dino"][0].made == ""
    assert closer.worst["dino"][0].given


def test_a_line_without_an_image_is_not_looked_at(pictures):
    assert look([scored("text_only", 0, dino=0.5)], pictures) is None


def test_large_pictures_are_made_small(pictures, tmp_path):
    Image.new("RGB", (1200, 600), (0, 0, 0)).save(tmp_path / "1.png")
    (one,) = look([scored("iterative", 1, dino=0.5)], pictures).worst["dino"]
    with Image.open(io.BytesIO(base64.b64decode(one.made.partition(",")[2]))) as picture:
        assert picture.size == (256, 128)
