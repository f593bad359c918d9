"""Ids as people give them."""

import pytest

from ezigen.config import ConfigurationError
from tasks.inspection.near import find_id

IDS = ["coco/train/1/10", "coco/train/1/11", "coco/train/12/3", "youtube_vis/a/1/0-4"]


@pytest.mark.parametrize(
    ("wanted", "found"), [("coco/train/1/10", IDS[0]), ("youtube", IDS[3]), ("coco/train/12", IDS[2])]
)
def test_an_id_or_the_only_one_that_begins_with_it(wanted, found):
    assert find_id(wanted, iter(IDS), "pair", "here") == found


def test_an_id_that_is_the_beginning_of_another_one_is_itself():
    assert find_id("coco/train/1", ["coco/train/1/10", "coco/train/1"], "pair", "here") == "coco/train/1"


def test_several_beginnings_are_shown():
    with pytest.raises(ConfigurationError, match=r"several pairs of here: coco/train/1/10, coco/train/1/11$"):
        find_id("coco/train/1/", IDS, "pair", "here")


def test_an_unknown_id_shows_its_neighbours_first():
    with pytest.raises(ConfigurationError, match=r"no pair of here; near it: coco/train/12/3, .*youtube_vis"):
        find_id("coco/train/12/4", IDS, "pair", "here")


def test_of_many_ids_the_nearest_are_shown():
    with pytest.raises(ConfigurationError, match=r"near it: 99999, 99998, 99997, 99996, 99995.$"):
        find_id("99999x", (f"{number:05d}" for number in range(100_000)), "subject", "here")


def test_no_ids_at_all():
    with pytest.raises(ConfigurationError, match="holds no subject at all"):
        find_id("a", [], "subject", "here")
