"""The data card: its numbers against the rows themselves, its page in a browser."""

import json
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest

from ezigen.config import ConfigurationError
from ezigen.pairs import RefusalReason
from tasks.pairs import write_card
from tasks.reports.refusals import REFUSALS, explain_refusal
from tasks.storage import OutputFolder
from tests.pairs_run.conftest import Build, World, break_annotations, read_pairs
from tests.reports.browser import CHROMIUM, Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def carded(world, tmp_path_factory, ray_address):
    """Pairs of a data set with damaged pictures and annotations, and their card."""
    folder = tmp_path_factory.mktemp("carded")
    damaged = World(folder / "coco", world.youtube_vis)
    shutil.copytree(world.coco, damaged.coco)
    for path in sorted((damaged.coco / "train2014").iterdir())[::5]:
        path.write_bytes(b"\xff\xd8<b>no picture</b>")
    break_annotations(damaged.coco)
    Build(damaged.inputs(folder / "out")).run(ray_address)
    write_card(OutputFolder(str(folder / "out")))
    return folder / "out"


def test_the_numbers_are_those_of_the_rows(carded):
    card = json.loads((carded / "card.json").read_text())
    rows = read_pairs(carded).to_pylist()
    refusals = [row for path in (carded / "refusals").iterdir() for row in pq.read_table(path).to_pylist()]
    assert card["pairs"] == len(rows) == 70
    for source in ("coco", "youtube_vis"):
        said, own = card["sources"][source], [row for row in rows if row["source"] == source]
        assert said["built"] == len(own)
        assert said["classes"] == Counter(row["subject_class"] for row in own)
        assert said["refused"] == Counter(row["reason"] for row in refusals if row["source"] == source)
        shares = card["histograms"][f"area_share/{source}"]
        assert sum(shares["counts"]) == len(own)
        assert shares["start"] <= min(row["mask_share"] for row in own) < shares["start"] + shares["width"]
    assert card["refused"] == Counter(row["reason"] for row in refusals)
    assert card["refused"]["picture_undecodable"] >= 1
    assert (card["refused"]["class_unknown"], card["refused"]["annotation_invalid"]) == (2, 1)
    assert set(card["sources"]["coco"]["not_selected"]) <= {"crowd", "area_too_small", "not_ranked"}
    distances = card["histograms"]["frame_distance"]
    expected = Counter(row["frame_distance"] for row in rows if row["frame_distance"] is not None)
    assert {int(distances["start"]) + i: n for i, n in enumerate(distances["counts"]) if n} == expected
    assert sum(card["bytes"].values()) == sum(path.stat().st_size for path in (carded / "pairs").iterdir())
    assert card["bytes"]["target"] > sum(len(row["target"]) for row in rows)
    assert card["flipped"] == sum(row["flipped"] for row in rows)


def test_writing_it_again_gives_the_same_card(carded):
    before = (carded / "card.json").read_bytes(), (carded / "card.html").read_bytes()
    write_card(OutputFolder(str(carded)))
    assert ((carded / "card.json").read_bytes(), (carded / "card.html").read_bytes()) == before


def test_an_output_without_pairs_or_with_a_damaged_shard_is_named(world, carded, tmp_path):
    with pytest.raises(ConfigurationError, match="build pairs there first"):
        write_card(OutputFolder(str(tmp_path / "nothing")))
    Build(world.inputs(tmp_path / "planned")).plan()
    write_card(OutputFolder(str(tmp_path / "planned")))
    assert "There is no pair yet" in (tmp_path / "planned/card.html").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(carded, copy)
    first = min((copy / "pairs").iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=first.name):
        write_card(OutputFolder(str(copy)))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_is_complete_in_itself(carded, tmp_path):
    page = (carded / "card.html").read_text()
    with Browser(tmp_path) as browser:
        browser.open(carded / "card.html")
        browser.wait_for("[...document.images].every((image) => (image.loading = 'eager', image.complete))")
        assert browser.run("[...document.images].every((image) => image.naturalWidth > 400)")
        assert browser.run("document.images.length") == 24
        assert browser.run("document.querySelectorAll('.column').length") > 5
        browser.run("document.querySelector('#chart-distance .plot-bars').focus()")
        browser.press("ArrowRight")
        assert "pair" in browser.run("document.querySelector('#chart-distance [data-note]').textContent")
        assert len(browser.requests) == 1  # the page itself
        assert browser.errors == []
        browser.open(carded / "card.html", width=390, phone=True)
        assert browser.run("document.documentElement.scrollWidth") <= 390
    assert explain_refusal("picture_undecodable").title in page


def test_every_reason_is_explained():
    assert set(REFUSALS) == set(RefusalReason)
    assert explain_refusal("of_another_version").title == "Of another version"
