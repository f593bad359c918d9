"""A model that draws the scenes makes other items; none leaves everything as it was."""

from ezigen.config import CatalogInputs, ModelConfig, SamplerConfig
from tasks.catalog.plan import plan_catalog
from tasks.catalog.sketches import memory_of_worker, with_sketch
from tests.catalog.conftest import good_row


def keys(catalog, out, **changes):
    inputs = CatalogInputs(catalog_uri=str(catalog), output_uri=str(out))
    plan = plan_catalog(inputs, SamplerConfig(), "model", "adapter", **changes)
    return [item.item_key for item in plan.items()]


def test_keys_know_the_sketch_model_only_where_there_is_one(write_catalog, tmp_path):
    catalog, out = write_catalog([good_row(0), good_row(1)]), tmp_path / "out"
    plain = keys(catalog, out)
    assert keys(catalog, out, sketch_fingerprint="") == plain
    one, other = keys(catalog, out, sketch_fingerprint="a"), keys(catalog, out, sketch_fingerprint="b")
    assert len({*plain, *one, *other}) == 6


def test_the_digest_of_a_sampler_without_a_sketch_model_is_its_own():
    digest = SamplerConfig().digest()
    assert with_sketch(digest, "") == digest
    assert with_sketch(digest, "a") != with_sketch(digest, "b") != digest


def test_a_worker_holds_the_sketch_model_too(tmp_path):
    for name, size in (("own", 1000), ("drawer", 5000)):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "model.safetensors").write_bytes(b"x" * size)
    own = {"model": str(tmp_path / "own")}
    alone = memory_of_worker(ModelConfig(**own))
    assert memory_of_worker(ModelConfig(**own, sketch={"model": str(tmp_path / "drawer")})) == alone + 7500
    assert memory_of_worker(ModelConfig(model="some/hub-id", sketch={"model": str(tmp_path / "drawer")})) == 0
