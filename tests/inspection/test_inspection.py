"""What is shown of stored things: counts against the files themselves, pictures against what they show."""

import dataclasses
import hashlib
import io
import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ezigen.config import ConfigurationError, ErrorCode, PairConfig
from tasks.catalog.results import ResultRow
from tasks.features.reader import FeatureStore
from tasks.inspection import SavedPicture, View, inspect_item, inspect_location
from tasks.inspection.components import EMPTY, draw_components
from tasks.inspection.feature_store import short_name
from tasks.storage import Locations, OutputFolder, RunOutput
from tests.inspection.conftest import CONFIG, build_pairs_here, make_store_here
from tests.pairs_run.conftest import read_pairs

FINEST = "up_blocks.2.attentions.1.transformer_blocks.0"


def facts(view: View) -> dict[str, str]:
    assert len({label for label, _ in view.facts}) == len(view.facts)
    return dict(view.facts)


def table(view: View, title: str) -> dict[str, tuple[str, ...]]:
    (found,) = (table for table in view.tables if table.title == title)
    return {row[0]: row[1:] for row in found.rows}


def picture(view: View) -> Image.Image:
    (saved,) = view.pictures
    return Image.open(io.BytesIO(saved.data)).convert("RGB")


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


# ---- pairs


def test_a_set_of_pairs(pairs):
    before = contents(pairs)
    view = inspect_location(str(pairs))
    stored = read_pairs(pairs).to_pylist()
    refusals = [row for path in (pairs / "refusals").iterdir() for row in pq.read_table(path).to_pylist()]
    assert facts(view)["state"] == f"finished: {len(stored)} pairs in {len(list((pairs / 'pairs').iterdir()))} shards"
    assert facts(view)["pictures"] == "64 px jpeg"
    assert facts(view)["last run"].startswith("run-1: finished")
    for title, column in (("by source", "source"), ("by class", "subject_class")):
        assert table(view, title) == {name: (str(n),) for name, n in Counter(row[column] for row in stored).items()}
    reasons = Counter(row["reason"] for row in refusals)
    assert reasons
    assert table(view, "refused") == {name: (str(n),) for name, n in reasons.items()}
    assert table(view, "columns of pairs")["target_crop"][0] == "double[4]"
    assert picture(view).width > 700
    assert contents(pairs) == before


def test_a_pair_shows_subject_mask_and_target_with_the_box(pairs):
    row = read_pairs(pairs).to_pylist()[0]
    view = inspect_item(str(pairs), row["pair_id"])
    assert facts(view)["caption"] == row["caption"]
    assert facts(view)["subject_sha256"] == row["subject_sha256"]
    shown = np.asarray(picture(view)).astype(int)
    panels = [shown[12 : 12 + 320, 12 + k * 324 : 12 + k * 324 + 320] for k in range(3)]
    for panel, column in zip(panels, ("subject", "subject_mask", "target"), strict=True):
        original = Image.open(io.BytesIO(row[column])).convert("RGB").resize((320, 320), Image.Resampling.LANCZOS)
        difference = np.abs(panel[4:-4, 4:-4] - np.asarray(original)[4:-4, 4:-4]).max(axis=2)
        assert (difference > 8).mean() < (0.1 if column == "target" else 0.001)
    x, y, _, height = (value * 5 for value in row["target_box"])
    colour = panels[2][round(np.clip(y + height / 2, 5, 314)), round(np.clip(x + 1, 1, 315))]
    assert np.abs(colour - (222, 49, 99)).max() < 8


def test_a_refused_candidate_says_why(pairs):
    row = next(row for path in (pairs / "refusals").iterdir() for row in pq.read_table(path).to_pylist())
    view = inspect_item(str(pairs), row["pair_id"])
    assert view.title.startswith("refused candidate")
    assert facts(view)["reason"] == row["reason"]
    assert not view.pictures


def test_targets_by_reference_are_cut_again_or_told_missing(world, tmp_path):
    config = CONFIG.model_copy(update={"targets": "reference"})
    videos = tmp_path / "world"
    shutil.copytree(world.coco.parent, videos)
    moved = type(world)(videos / world.coco.name, videos / world.youtube_vis.name)
    folder = build_pairs_here(moved, tmp_path / "pairs", config)
    row = read_pairs(folder).to_pylist()[0]
    assert row["target"] is None
    reachable = np.asarray(picture(inspect_item(str(folder), row["pair_id"])))
    shutil.rmtree(videos)
    gone = np.asarray(picture(inspect_item(str(folder), row["pair_id"])))
    assert reachable[12:332, 660:980].std() > 20
    assert gone[20:320, 680:960].std() == 0


def test_an_unfinished_set_says_how_far_it_is(pairs, tmp_path):
    shutil.copytree(pairs, tmp_path / "pairs")
    (tmp_path / "pairs" / "manifest.json").unlink()
    next((tmp_path / "pairs" / "pairs").iterdir()).unlink()
    num_shards = len(list((pairs / "pairs").iterdir()))
    state = facts(inspect_location(str(tmp_path / "pairs")))["state"]
    assert state.startswith(f"unfinished: {num_shards - 1} of {num_shards} planned shards")


def test_a_damaged_shard_is_named(pairs, tmp_path):
    shutil.copytree(pairs, tmp_path / "pairs")
    shard = sorted((tmp_path / "pairs" / "pairs").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match=f"{shard.name} is damaged"):
        inspect_location(str(tmp_path / "pairs"))


# ---- features


def test_a_feature_store(store, pairs):
    before = contents(store)
    view = inspect_location(str(store))
    opened = FeatureStore.open(str(store))
    assert facts(view)["state"] == "finished"
    assert facts(view)["fingerprint of model"] == opened.identity.model_fingerprint
    assert facts(view)["stored as"] == "fp16, tokens all"
    sizes = {path.name: sum(f.stat().st_size for f in path.iterdir()) for path in store.iterdir() if path.is_dir()}
    tables = table(view, "tables")
    assert tables["subjects"] == (str(len(opened)), f"{sizes['subjects']:,}")
    assert tables["samples"] == (str(len(read_pairs(pairs))), f"{sizes['samples']:,}")
    assert table(view, "blocks")[FINEST] == ("256", "64")
    assert table(view, "columns of subjects")[FINEST] == ("32,768 bytes", "fp16 256x64")
    assert picture(view).height > 500
    assert contents(store) == before


@pytest.mark.parametrize("kind", ["store", "foreground_store"])
def test_features_look_like_their_subject(kind, pairs, request):
    """The components' colours tell object from background: a mask can be read from them, as from nothing else."""
    opened = FeatureStore.open(str(request.getfixturevalue(kind)))
    rows = {row["pair_id"]: row for row in read_pairs(pairs).to_pylist()}
    shares = []
    for sample in [row for batch in opened.samples() for row in batch.to_pylist()][:8]:
        mask = Image.open(io.BytesIO(rows[sample["pair_id"]]["subject_mask"])).resize((16, 16), Image.Resampling.BOX)
        inside = np.asarray(mask).astype(float).ravel() / 255
        batch = opened.read_subjects([sample["subject_id"]])
        kept = None if batch.kept is None else batch.kept[FINEST][0].numpy()
        drawn = np.asarray(draw_components(batch.features.tokens[FINEST][0].float().numpy(), kept)).reshape(256, 3)
        if kept is not None:
            assert (drawn[~kept] == EMPTY).all()
            assert inside[~kept].max() == 0
        shares.append(explained_share(drawn, inside))
    assert np.median(shares) > 0.6


def explained_share(colours: np.ndarray, wanted: np.ndarray) -> float:
    """Share of the variance of `wanted` that a linear function of the colours explains."""
    inputs = np.column_stack([colours.astype(float), np.ones(len(colours))])
    left = wanted - inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    return 1 - left.var() / wanted.var()


def test_a_subject_by_its_id_its_beginning_or_its_pair(store, pairs):
    (sample,) = (
        (row for batch in FeatureStore.open(str(store)).samples() for row in batch.slice(0, 1).to_pylist()[:1])
        if False
        else [next(iter(FeatureStore.open(str(store)).samples())).to_pylist()[0]]
    )
    by_pair = inspect_item(str(store), sample["pair_id"])
    assert (
        by_pair == inspect_item(str(store), sample["subject_id"]) == inspect_item(str(store), sample["subject_id"][:9])
    )
    assert facts(by_pair)["subject_id"] == sample["subject_id"]
    assert len(table(by_pair, "blocks")) == 9
    # The first cell is the subject's own picture, from the pairs that the store was made of.
    row = next(row for row in read_pairs(pairs).to_pylist() if row["pair_id"] == facts(by_pair)["one of its pairs"])
    own = Image.open(io.BytesIO(row["subject"])).convert("RGB").resize((144, 144), Image.Resampling.LANCZOS)
    shown = np.asarray(picture(by_pair)).astype(int)
    top = 12 + 20
    assert np.abs(shown[top + 4 : top + 140, 16 : 12 + 140] - np.asarray(own)[4:140, 4:140]).max() < 3


def test_a_store_whose_pairs_are_gone_shows_its_features_alone(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    output = OutputFolder(str(tmp_path / "store"))
    record = output.read_run()
    output.write("run.json", record.to_json().replace(b"pairs", b"elsewhere"))
    with_picture, without = (picture(inspect_location(str(folder))) for folder in (store, tmp_path / "store"))
    assert without.width == with_picture.width - 148


def test_a_store_of_latents_shows_the_latent(pairs, tmp_path):
    folder = make_store_here(pairs, tmp_path / "latents", policy="latents")
    view = inspect_location(str(folder))
    assert facts(view)["policy"] == "latents"
    assert view.pictures
    subject_id = FeatureStore.open(str(folder)).subject_ids()[0]
    assert table(inspect_item(str(folder), subject_id), "blocks") == {"latent": ("16x16, 8 channels",)}


def test_an_unfinished_store(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    view = inspect_location(str(tmp_path / "store"))
    assert facts(view)["state"].startswith("unfinished")
    assert not view.pictures


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0", "down 0.1"),
        ("mid_block.attentions.0.transformer_blocks.0", "mid 0"),
        ("up_blocks.3.attentions.2.transformer_blocks.0", "up 3.2"),
    ],
)
def test_block_names_in_short(name, short):
    assert short_name(name) == short


# ---- elsewhere


def test_what_lies_on_s3_is_shown_like_a_folder(pairs, store, s3_server, s3_folder):
    options = s3_server.storage_options
    remote = OutputFolder(s3_folder, Locations(storage_options=options))
    for folder in (pairs, store):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            remote.write(f"{folder.name}/{path.relative_to(folder)}", path.read_bytes())
    for folder in (pairs, store):
        here, there = inspect_location(str(folder)), inspect_location(f"{s3_folder}/{folder.name}", options)
        assert there.tables == here.tables
        assert there.pictures == here.pictures
        assert facts(there) | {"location": str(folder)} == facts(here)
    subject_id = FeatureStore.open(str(store)).subject_ids()[0]
    assert inspect_item(f"{s3_folder}/store", subject_id, options) == inspect_item(str(store), subject_id)


# ---- results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An output with a done item that has a preview, and a failed one."""
    strip = Image.new("RGB", (96 * 3, 96), "red")
    preview = io.BytesIO()
    strip.save(preview, "PNG")
    given = {"run_id": "run", "attempts": 1, "finished_at": datetime(2026, 11, 22, tzinfo=UTC), "prompt": "a cup"}
    done = ResultRow("0" * 32, "cup-1", 0, status="done", image_uri="images/00/0.png", **given)
    done = dataclasses.replace(done, preview=preview.getvalue(), preview_panels=3)
    failed = ResultRow("1" * 32, "cup-2", 1, status="failed", error_code=ErrorCode.IMAGE_MISSING, **given)
    RunOutput(str(tmp_path / "out")).write_results("run", 0, [done, failed])
    return tmp_path / "out"


def test_the_output_of_a_catalog_run(results):
    view = inspect_location(str(results))
    assert facts(view)["images"] == "1 done, 1 failed"
    assert table(view, "failed") == {"image_missing": ("1",)}
    assert table(view, "columns of results")["preview_panels"][0] == "int32"
    assert picture(view).width > 100


def test_an_item_by_id_or_key(results):
    view = inspect_item(str(results), "cup-1")
    assert view == inspect_item(str(results), "0000")
    assert facts(view)["image_uri"] == str(results / "images/00/0.png")
    assert picture(view).getpixel((12 + 300, 100)) == (255, 0, 0)
    assert facts(inspect_item(str(results), "cup-2"))["error_code"] == "image_missing"
    with pytest.raises(ConfigurationError, match="near it: cup-"):
        inspect_item(str(results), "cup-9")


# ---- adapters, mistakes


def test_an_adapter(tmp_path):
    from ezigen.adapters import adapter_fingerprint
    from ezigen.mini import weights_folder

    folder = Path(weights_folder()) / "adapter"
    view = inspect_location(str(folder))
    assert facts(view)["fingerprint"] == adapter_fingerprint("auto")
    assert facts(view)["made for"].startswith("mini ")
    assert table(view, "tensors")["mid_block.attentions.0.transformer_blocks.0.to_q.weight"] == ("F16", "160x160")
    with pytest.raises(ConfigurationError, match="holds no items"):
        inspect_item(str(folder), "x")
    (tmp_path / "adapter.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"card.json|not a safetensors file"):
        inspect_location(str(tmp_path))


def test_the_sample_sheet_that_was_published_with_an_adapter(tmp_path, s3_server, s3_folder):
    from ezigen.adapters import read_card
    from ezigen.mini import weights_folder

    folder = tmp_path / "v1"
    shutil.copytree(Path(weights_folder()) / "adapter", folder)
    assert inspect_location(str(folder)).pictures == ()
    Image.new("RGB", (300, 200), "green").save(folder / "sheet.jpg")
    data = (folder / "sheet.jpg").read_bytes()
    assert inspect_location(str(folder)).pictures == (SavedPicture("sheet.jpg", data),)
    card = read_card(folder).model_copy(update={"files": {"sheet.jpg": hashlib.sha256(data).hexdigest()}})
    (folder / "card.json").write_text(card.model_dump_json())
    view = inspect_location(str(folder))
    assert picture(view).size == (300, 200)

    options = s3_server.storage_options
    remote = OutputFolder(f"{s3_folder}/v1", Locations(storage_options=options))
    for path in folder.iterdir():
        remote.write(path.name, path.read_bytes())
    there = inspect_location(remote.root_uri, options)
    assert (there.pictures, there.tables) == (view.pictures, view.tables)
    (folder / "sheet.jpg").write_bytes(data[:-10])
    with pytest.raises(ConfigurationError, match=r"sheet\.jpg does not have the checksum in card\.json"):
        inspect_location(str(folder))


def test_unknown_locations_and_ids_say_what_is_known(pairs, store, tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        inspect_location(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="is a file; give the folder"):
        inspect_location(str(pairs / "run.json"))
    with pytest.raises(ConfigurationError, match=r"a set of pairs.*a feature store.*an adapter"):
        inspect_location(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"no pair of .*; near it: coco/train/"):
        inspect_item(str(pairs), "coco/train/x")
    with pytest.raises(ConfigurationError, match=r"no subject of .*; near it: "):
        inspect_item(str(store), "zzz")
    with pytest.raises(ConfigurationError, match=r"no pair of .*; near it: "):
        inspect_item(str(store), "coco/none")


def test_pairs_of_another_size_format_are_said(world, tmp_path):
    config = PairConfig(size_px=32, picture_format="png", coco=CONFIG.coco)
    view = inspect_location(str(build_pairs_here(world, tmp_path / "pairs", config)))
    assert facts(view)["pictures"] == "32 px png"
