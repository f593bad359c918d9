"""Pictures that rows share are read once, within bounds."""

import pytest
from PIL import Image

from ezigen.config import ErrorCode, ItemError
from tasks.catalog.pictures import PictureReader
from tasks.storage import Locations


@pytest.fixture
def reader(tmp_path):
    """A reader with room for two of the small pictures."""
    for name, colour in (("a.png", (200, 0, 0)), ("b.png", (0, 200, 0)), ("c.png", (0, 0, 200))):
        Image.new("RGB", (100, 50), colour).save(tmp_path / name)
    Image.new("RGB", (200, 150)).save(tmp_path / "large.png")
    locations = Locations(allowed_roots=(str(tmp_path),), base_uri=str(tmp_path))
    return PictureReader(locations, max_side_px=1000, max_pixels=10**6, max_kept_bytes=50_000)


def test_what_was_used_last_is_kept(reader, tmp_path):
    first = reader.read("a.png")
    assert first[0] == (tmp_path / "a.png").read_bytes()
    reader.read("b.png")
    assert reader.read("a.png") is first
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    reader.read("c.png")  # at the expense of b.png
    assert reader.read("a.png") is first
    with pytest.raises(ItemError, match=r"b\.png"):
        reader.read("b.png")
    assert reader.counts() == {"hits.pictures": 2, "misses.pictures": 4}


def test_one_that_is_too_large_to_be_kept_displaces_nothing(reader):
    first = reader.read("a.png")
    assert reader.read("large.png")[1].rgb.size == (200, 150)
    assert reader.read("large.png")[1] is not reader.read("large.png")[1]
    assert reader.read("a.png") is first


def test_a_failure_is_not_kept(reader, tmp_path):
    (tmp_path / "d.png").write_bytes(b"not yet a picture")
    with pytest.raises(ItemError, match=r"^d\.png: ") as caught:
        reader.read("d.png")
    assert caught.value.code is ErrorCode.IMAGE_UNDECODABLE
    Image.new("RGB", (20, 20)).save(tmp_path / "d.png")
    assert reader.read("d.png")[1].rgb.size == (20, 20)
