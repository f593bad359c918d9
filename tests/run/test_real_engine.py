"""Catalog runs with the real method on a tiny stack: what the engine does in a worker, where light ones do nothing."""

import hashlib
import json

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from ezigen.config import CatalogInputs, ClusterConfig, ConfigurationError, ErrorCode, FeatureConfig, SamplerConfig
from ezigen.images import decode_picture
from ezigen.models.pixels import to_pixels
from ezigen.models.stack import load_stack
from ezigen.subject import SubjectEncoder
from tasks.actors import CatalogWorker
from tasks.catalog.outcome import TooManyFailures
from tasks.features import FeatureIdentity, FeatureShardWriter, ModelShape, subject_id, write_index, write_store
from tasks.storage import OutputFolder
from tests.features.stores import samples_of
from tests.run.catalogs import assert_complete, image_hashes, resolved_rows, write_catalog
from tests.run.driver import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_address")]

MAPPED = SamplerConfig(num_steps=4, guidance_scale=2.0, loops={"stop": "fixed", "num_loops": 1})


def cluster(**changes) -> ClusterConfig:
    address = ray.get_runtime_context().gcs_address
    return ClusterConfig(**{"address": address, "num_workers": 1, "num_slots": 4, "num_ahead": 4, **changes})


def measurements(folder) -> dict:
    return json.loads((folder / "run.json").read_text())["measurements"]


class ShortOfMemory(CatalogWorker):
    """Memory runs out once, in the middle of the transfers."""

    def load_engine(self):
        engine = super().load_engine()
        calls = 0

        def fail_once(_call) -> None:
            nonlocal calls
            calls += 1
            if calls == 12:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        engine._on_call = fail_once
        return engine


def test_memory_that_runs_out_in_a_run_costs_slots_and_no_item(tmp_path, tiny_model):
    catalog = write_catalog(tmp_path, 6)
    out = tmp_path / "out"
    given = CatalogInputs(catalog_uri=str(catalog), output_uri=str(out))
    outcome = run(given, ShortOfMemory, cluster=cluster(), model=tiny_model, sampler=MAPPED)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert_complete(out, 6)
    assert measurements(out)["slots_halved"] == 1
    assert {row.attempts for row in resolved_rows(out).values()} == {1}


def test_a_run_whose_unet_is_compiled_says_how_often(tmp_path, tiny_model):
    catalog = write_catalog(tmp_path, 2)
    out = tmp_path / "out"
    given = CatalogInputs(catalog_uri=str(catalog), output_uri=str(out))

    class Compiled(CatalogWorker):
        """The compiler of a machine without a C++ compiler."""

        def load_engine(self):
            engine = super().load_engine()
            engine._runner._compiler = "aot_eager"
            return engine

    run(given, Compiled, cluster=cluster(compile_unet=True), model=tiny_model, sampler=MAPPED)
    assert measurements(out)["compiled_shapes"] == 2
    assert measurements(out)["worker_seconds"]["compile"] > 0
    assert_complete(out, 2)


def write_edits(folder):
    """Two rows that generate, four that edit in their own ways, and three whose masks are wrong."""
    write_catalog(folder, 2)
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (63, 47, 3), dtype=np.uint8)).save(folder / "source.png")
    mask = Image.new("L", (94, 126), 0)
    mask.paste(255, (20, 30, 60, 80))
    mask.save(folder / "mask.png")
    Image.new("L", (47, 63), 0).save(folder / "empty.png")
    Image.new("L", (63, 47), 255).save(folder / "turned.png")
    lines = ["item_id,subject_uri,subject_class,prompt,seed,source_uri,mask_uri,mask_box"]
    edits = ["source.png,mask.png,", 'source.png,,"4,4,30,40"', "source.png,,", "red.png,,", "source.png,empty.png,"]
    edits += ["source.png,turned.png,", "source.png,absent.png,"]
    for index, cells in enumerate([",,", ",,", *edits]):
        lines.append(f"item-{index},{('red', 'blue')[index % 2]}.png,cup,a cup on a table,{index},{cells}")
    (folder / "catalog.csv").write_text("\n".join(lines) + "\n")
    return folder / "catalog.csv"


def test_edits_and_images_of_one_catalog(tmp_path, tiny_model):
    catalog, out = write_edits(tmp_path / "in"), tmp_path / "out"
    given = CatalogInputs(catalog_uri=str(catalog), output_uri=str(out), max_failed_share=0.5)
    outcome = run(given, CatalogWorker, cluster=cluster(), model=tiny_model, sampler=MAPPED)
    assert (outcome.done, outcome.failed) == (6, 3)
    assert_complete(out, 9, failed={"item-6", "item-7", "item-8"})
    rows = resolved_rows(out)
    codes = {name: row.error_code for name, row in rows.items() if row.error_code}
    wrong_mask, missing = ErrorCode.MASK_MISMATCH, ErrorCode.IMAGE_MISSING
    assert codes == {"item-6": wrong_mask, "item-7": wrong_mask, "item-8": missing}
    sizes = [(rows[f"item-{n}"].width_px, rows[f"item-{n}"].height_px) for n in range(6)]
    assert sizes == [(32, 32), (32, 32), (47, 63), (47, 63), (47, 63), (40, 30)]
    assert [rows[f"item-{n}"].source_uri for n in range(6)] == [None, None, *["source.png"] * 3, "red.png"]
    # The subject, the source with its mask, the first transfer and the loop.
    assert {row.preview_panels for row in rows.values() if row.status == "done"} == {4}
    assert rows["item-2"].num_unet_calls == 1 + 1 + 2 * 2 * 2  # the subject, a step up, two passes of two guided steps
    source = np.asarray(Image.open(catalog.parent / "source.png"))
    for name, untouched in (("item-2", np.s_[45:]), ("item-3", np.s_[45:])):
        result = np.asarray(Image.open(out / rows[name].image_uri))
        assert (result[untouched] == source[untouched]).all()
        assert (result != source).any()
    again = run(given, CatalogWorker, cluster=cluster(), model=tiny_model, sampler=MAPPED)
    assert again.nothing_to_do


# ---- Stable Diffusion XL


def test_a_run_with_xl_takes_a_subject_from_its_store_and_encodes_the_other(tmp_path, xl_model, square_catalog):
    write_subjects(tmp_path / "red", xl_model.model, files(square_catalog, "red"))
    measured = run_with(square_catalog, tmp_path / "out", xl_model, tmp_path / "red")
    assert measured["unet_calls"]["encode"] == 1
    assert measured["cache_hit_share"]["features"] == 0.5
    assert_complete(tmp_path / "out", 6)
    assert len(set(image_hashes(tmp_path / "out").values())) == 6


# ---- features that a store holds


def write_subjects(root, model, pictures, subject_class="cup", **changes):
    """A finished store of these picture files, made with `model-fingerprint`, as the runs of these tests are."""
    stack = load_stack(model, device="cpu")
    config = FeatureConfig(**{"dtype": "fp16", **changes})
    identity = FeatureIdentity.of("model-fingerprint", ModelShape.of(model), config, network_dtype="fp32")
    output, name = OutputFolder(str(root)), "r0-00000"
    write_store(output, identity, row_group_mib=0)
    encoder = SubjectEncoder(stack)
    with FeatureShardWriter(output, identity, name, row_group_mib=0) as writer:
        for sha256, data in pictures:
            pixels = to_pixels(decode_picture(data).rgb)[None]
            features = encoder.encode(pixels, [subject_class], t_sub=config.t_sub)
            writer.add_subjects([subject_id(sha256, subject_class)], [subject_class], features, [None])
        shard = writer.close(samples_of(range(0)))
    write_index(output, identity, {name: shard})


@pytest.fixture
def square_catalog(tmp_path):
    """Rows of two products, whose pictures have the model's size."""
    catalog = write_catalog(tmp_path / "catalog", 6)
    rng = np.random.default_rng(0)
    for name in ("red", "blue"):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(catalog.parent / f"{name}.png")
    return catalog


def files(catalog, *names):
    for name in names:
        data = (catalog.parent / f"{name}.png").read_bytes()
        yield hashlib.sha256(data).hexdigest(), data


def run_with(catalog, out, model, features_uri="", **changes):
    given = CatalogInputs(catalog_uri=str(catalog), output_uri=str(out), features_uri=str(features_uri))
    run(given, CatalogWorker, cluster=cluster(), model=model, sampler=MAPPED.model_copy(update=changes))
    return measurements(out)


def pixels_of(folder):
    rows = resolved_rows(folder)
    return {key: np.asarray(Image.open(folder / row.image_uri).convert("RGB"), np.int16) for key, row in rows.items()}


def test_subjects_of_a_feature_store_are_not_encoded_again(tmp_path, tiny_model, square_catalog):
    encoded = run_with(square_catalog, tmp_path / "encoded", tiny_model)
    assert encoded["unet_calls"]["encode"] == 2
    assert "features" not in encoded["cache_hit_share"]

    write_subjects(tmp_path / "both", tiny_model.model, files(square_catalog, "red", "blue"))
    stored = run_with(square_catalog, tmp_path / "stored", tiny_model, tmp_path / "both")
    assert stored["unet_calls"].get("encode", 0) == 0
    assert stored["cache_hit_share"]["features"] == 1.0
    expected = pixels_of(tmp_path / "encoded")
    for key, pixels in pixels_of(tmp_path / "stored").items():
        assert np.abs(pixels - expected[key]).mean() < 1  # fp16 in the store
    assert len(set(image_hashes(tmp_path / "stored").values())) == 6


def test_subjects_that_the_store_does_not_know_are_encoded(tmp_path, tiny_model, square_catalog):
    write_subjects(tmp_path / "red", tiny_model.model, files(square_catalog, "red"))
    measured = run_with(square_catalog, tmp_path / "out", tiny_model, tmp_path / "red")
    assert measured["unet_calls"]["encode"] == 1
    assert measured["cache_hit_share"]["features"] == 0.5
    assert_complete(tmp_path / "out", 6)


def test_features_of_another_timestep_are_refused_by_name(tmp_path, tiny_model, square_catalog):
    write_subjects(tmp_path / "store", tiny_model.model, files(square_catalog, "red"), t_sub=100)
    with pytest.raises(ConfigurationError, match=r"was made with t_sub 100, but t_sub 1 is wanted"):
        run_with(square_catalog, tmp_path / "out", tiny_model, tmp_path / "store")
    assert not (tmp_path / "out" / "results").exists()


def test_a_store_that_is_not_there_is_told_before_anything_is_made(tmp_path, tiny_model, square_catalog):
    with pytest.raises(ConfigurationError, match="is no feature store"):
        run_with(square_catalog, tmp_path / "out", tiny_model, tmp_path / "nowhere")


def test_a_damaged_store_fails_the_items_that_it_holds_and_names_itself(tmp_path, tiny_model, square_catalog):
    write_subjects(tmp_path / "red", tiny_model.model, files(square_catalog, "red"))
    for path in (tmp_path / "red" / "subjects").glob("*.parquet"):
        path.unlink()
    with pytest.raises(TooManyFailures):
        run_with(square_catalog, tmp_path / "out", tiny_model, tmp_path / "red")
    rows = resolved_rows(tmp_path / "out").values()
    failed = [row for row in rows if row.status == "failed"]
    assert len(rows) == 6
    assert len(failed) == 3
    assert {row.error_code for row in failed} == {ErrorCode.STORAGE_ERROR}
    assert all(str(tmp_path / "red") in row.error_message for row in failed)
