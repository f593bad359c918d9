"""Damaged annotations, decisions and answers: a wrong entry costs itself, a wrong file is refused by its name."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ezigen.config import CocoSelection, ConfigurationError, PairConfig, VideoSelection
from tasks.adapters.registry import Registry
from tasks.datasets.coco import CocoReader
from tasks.datasets.drawing import Pair, PictureLimits, RefusedPair, build_unit
from tasks.datasets.youtube_vis import YoutubeVisReader
from tasks.reviews import apply_decisions
from tasks.storage import RunOutput
from tasks.storage.run_record import RunRecord
from tasks.studies import read_results
from tests.fuzz.hostile import as_json, attempt, bounded, damaged, edited, fuzzed

SIDE = 48
SQUARE = [[8, 8, 40, 8, 40, 40, 8, 40]]
RUNS = {"size": [SIDE, SIDE], "counts": [10, *[28, 20] * 23, 28, 1162]}
INSTANCES = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in (1, 2)],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "area": 1024.0, "segmentation": SQUARE, "iscrowd": 0},
        {"id": 11, "image_id": 2, "category_id": 2, "area": 900, "segmentation": RUNS, "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "giant_panda"}],
}
CAPTIONS = {"annotations": [{"image_id": n, "caption": "a cup on a table"} for n in (1, 2)]}
VIDEOS = {
    "videos": [{"id": 1, "file_names": ["v/0.png", "v/1.png", "v/2.png"], "width": SIDE, "height": SIDE}],
    "annotations": [
        {"id": 5, "video_id": 1, "category_id": 1, "segmentations": [SQUARE, RUNS, None], "iscrowd": 0},
        {"id": 6, "video_id": 1, "category_id": 1, "segmentations": [RUNS, SQUARE, RUNS], "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "cup"}],
}
META = {"videos": {"v": {"objects": {"1": {"category": "cup", "frames": ["0", "1", "2"]}}}}}
LAYOUTS = {"instances.json": VIDEOS, "meta.json": META}
PAIRS = PairConfig(size_px=64)
LIMITS = PictureLimits(max_side_px=1000, max_pixels=100_000)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """A data set that is all three; the annotation files are written by the tests."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("annotations", "train2014", "JPEGImages/v", "Annotations/v"):
        (folder / name).mkdir(parents=True)
    picture = Image.effect_noise((SIDE, SIDE), 90).convert("RGB")
    for n in (1, 2):
        picture.save(folder / f"train2014/{n}.png")
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[8:40, 8:40] = 1
    for n in range(3):
        picture.save(folder / f"JPEGImages/v/{n}.png")
        picture.save(folder / f"JPEGImages/v/{n}.jpg")
        Image.fromarray(labels).save(folder / f"Annotations/v/{n}.png")
    return folder


def read_coco(folder, instances: bytes, captions: bytes) -> int:
    (folder / "annotations/instances_train2014.json").write_bytes(instances)
    (folder / "annotations/captions_train2014.json").write_bytes(captions)
    return count_pairs(folder, CocoReader(str(folder)), CocoSelection(min_area_px=1))


def read_videos(folder, name: str, content: bytes) -> int:
    for other in LAYOUTS:
        (folder / other).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    return count_pairs(folder, YoutubeVisReader(str(folder)), VideoSelection())


def count_pairs(folder, reader, selection) -> int:
    """How many pairs come of annotations. Whatever they say, nothing comes of them but pairs and refusals."""
    num_pairs, defects = 0, []
    with bounded(folder):
        units, error = attempt(lambda: list(reader.read(selection, on_defect=defects.append)), ConfigurationError)
        for unit in units or ():
            for made in build_unit(unit, range(3), PAIRS, reader.locations.read_bytes, LIMITS):
                assert isinstance(made, Pair | RefusedPair)
                num_pairs += isinstance(made, Pair)
    assert all(defect.message.encode() for defect in defects)
    assert error is None or str(folder) in str(error)
    return num_pairs


def test_undamaged_documents_are_read(data_set, tmp_path):
    """Or else the other tests look at nothing."""
    assert read_coco(data_set, as_json(INSTANCES), as_json(CAPTIONS)) == 2
    assert read_videos(data_set, "instances.json", as_json(VIDEOS)) > 2
    assert read_videos(data_set, "meta.json", as_json(META)) > 2
    write_study(tmp_path, as_json(KEY), as_json(ANSWERS))
    assert read_results(str(tmp_path / "key.json"), [str(tmp_path / "answers.json")]).num_missing == 0
    write_alias(tmp_path, as_json(ALIAS))
    assert Registry(str(tmp_path)).aliases("owl")["latest"].version == "v3"


@fuzzed()
@given(
    instances=damaged([as_json(INSTANCES)]) | edited([INSTANCES]).map(as_json),
    captions=st.just(as_json(CAPTIONS)) | edited([CAPTIONS]).map(as_json),
)
def test_coco(data_set, instances, captions):
    read_coco(data_set, instances, captions)


@pytest.mark.parametrize("name", LAYOUTS)
@fuzzed()
@given(data=st.data())
def test_youtube_vis(data_set, name, data):
    document = LAYOUTS[name]
    read_videos(data_set, name, data.draw(damaged([as_json(document)]) | edited([document]).map(as_json)))


DECISIONS = {
    "format": "ezigen-review/1",
    "reviewer": "Ann",
    "decisions": [
        {
            "item_key": "0" * 32,
            "item_id": "a",
            "image_sha256": "0" * 64,
            "decision": "approved",
            "decided_at": "2026-01-01T00:00:00Z",
            "note": "good",
        },
    ],
}
KEY = {
    "format": "ezigen-study-key/1",
    "study": "s1",
    "methods": {"ours": "a", "theirs": "b"},
    "questions": {"quality": "Which?"},
    "seed": 0,
    "made_at": "2026-01-01",
    "cases": [{"case": "c1", "item": "i", "labels": {"A": "ours", "B": "theirs"}}],
}
ANSWERS = {
    "format": "ezigen-study-answers/1",
    "study": "s1",
    "rater": "Ann",
    "answers": [{"case": "c1", "question": "quality", "choice": "A", "at": "", "seconds": 2.5}],
}
RECORD = json.loads(RunRecord(run_id="run", state="done", started_at="2026-01-01T00:00:00+00:00").to_json())
ALIAS = {"version": "v3", "moved_at": "2026-01-01", "earlier": [{"version": "v1", "moved_at": "2025-01-01"}]}


def write_study(folder, key: bytes, answers: bytes) -> None:
    (folder / "key.json").write_bytes(key)
    (folder / "answers.json").write_bytes(answers)


def write_alias(folder, content: bytes) -> None:
    (folder / "owl/aliases").mkdir(parents=True, exist_ok=True)
    (folder / "owl/aliases/latest.json").write_bytes(content)


@fuzzed()
@given(content=damaged([as_json(DECISIONS)]) | edited([DECISIONS]).map(as_json))
def test_decisions(content, tmp_path):
    (tmp_path / "decisions.json").write_bytes(content)
    output = RunOutput(str(tmp_path / "out"))
    with bounded(tmp_path):
        applied, error = attempt(lambda: apply_decisions(output, str(tmp_path / "decisions.json")), ConfigurationError)
    assert applied is None, "the output has no items"
    assert "decisions.json" in str(error)


@fuzzed()
@given(
    key=st.just(as_json(KEY)) | edited([KEY]).map(as_json),
    answers=damaged([as_json(ANSWERS)]) | edited([ANSWERS]).map(as_json),
)
def test_answers(key, answers, tmp_path):
    write_study(tmp_path, key, answers)
    files = [str(tmp_path / name) for name in ("key.json", "answers.json")]
    with bounded(tmp_path):
        results, error = attempt(lambda: read_results(files[0], files[1:]), ConfigurationError)
        if results is not None:
            json.dumps(results.to_json(), allow_nan=False)
    assert results is not None or any(file in str(error) for file in files)


@fuzzed(0.5)
@given(content=damaged([as_json(RECORD)]) | edited([RECORD]).map(as_json))
def test_records_of_runs(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with bounded(tmp_path):
        record, error = attempt(RunOutput(str(tmp_path)).read_run, ConfigurationError)
    assert record or "run.json" in str(error)


@fuzzed(0.5)
@given(content=damaged([as_json(ALIAS)]) | edited([ALIAS]).map(as_json))
def test_aliases(content, tmp_path):
    write_alias(tmp_path, content)
    with bounded(tmp_path):
        _, error = attempt(lambda: Registry(str(tmp_path)).resolve("owl@latest"), ConfigurationError)
    assert "owl" in str(error), "the version that it points to is not there"
