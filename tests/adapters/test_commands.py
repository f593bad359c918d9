"""`ezigen adapters`, and a catalog run that keeps to the version that its alias meant."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from ezigen.adapters import AdapterCard, add_subject_encoder, attach_adapters, save_adapter
from ezigen.config import (
    CatalogInputs,
    ClusterConfig,
    ConfigurationError,
    ModelConfig,
    SamplerConfig,
)
from ezigen.models.fingerprint import model_fingerprint
from flows.catalog_job import CatalogJob
from flows.command_line import app
from flows.parameters import CatalogParameters
from flows.planning import check_early
from tasks.adapters import Registry
from tasks.adapters.importing import import_adapter
from tests.ezigen.test_adapter_files import authors_tensors
from tests.run.catalogs import image_hashes, write_catalog
from tests.tiny import tiny_unet


def ezigen(*arguments, code=0):
    """What a command prints. Errors go where the output goes."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "adapters")


def test_from_import_to_promotion(uri, make_folder):
    assert "owls@v1: " in ezigen("adapters", "import", "auto", "owls", "--model", "mini")
    Registry(uri).publish("owls", make_folder(7), run="7", alias="latest", metrics={"dino": 0.7123456})
    assert "owls@production is v1 now" in ezigen("adapters", "promote", "owls@v1", "production")
    assert "owls@staging is v2 now" in ezigen("adapters", "promote", "owls", "staging")
    listed = ezigen("adapters", "list")
    assert listed.index("owls@v2 latest, staging") < listed.index("owls@v1 production")
    assert "dino 0.7123" in listed
    shown = ezigen("adapters", "show", "owls@production", "--adapters", uri)
    base = f"for model mini {model_fingerprint('mini')[:12]}"
    for text in ("owls@v1", base, "9 with 642,441 numbers", "optimizer muon", "latest v2"):
        assert text in shown
    assert "published as owls@v1" in ezigen("inspect", "owls@production")
    assert "holds no adapter cups" in ezigen("adapters", "list", "cups", code=2)
    assert "near it: owls" in ezigen("adapters", "show", "owl", code=2)
    assert "has no version v3" in ezigen("adapters", "promote", "owls@v3", "production", code=2)
    assert "holds no adapters" in ezigen("adapters", "list", "--adapters", "elsewhere", code=2)


def test_doctor_looks_for_the_adapter_that_is_named(uri):
    from flows.doctor import check_model

    ezigen("adapters", "import", "auto", "owls", "--model", "mini")
    findings = list(check_model(ModelConfig(adapter="owls@latest")))
    assert "owls@v1 is complete" in findings[1].detail
    with pytest.raises(ConfigurationError, match="no alias production"):
        list(check_model(ModelConfig(adapter="owls@production")))


def make_job(catalog, model, adapter, address="local"):
    sampler = SamplerConfig(num_steps=2, mode="full_injection")
    return CatalogJob(
        CatalogParameters(
            CatalogInputs(catalog_uri=str(catalog), output_uri="out", max_previews=0),
            ModelConfig(model=str(model), adapter=adapter, image_encoder=str(model / "dinov2"), device="cpu"),
            sampler,
            ClusterConfig(address=address, num_workers=1, cpus_per_worker=1),
        ),
        {},
    )


def test_an_adapter_of_another_model_is_refused_before_anything_starts(uri, tiny_folder, tmp_path):
    ezigen("adapters", "import", "auto", "owls", "--model", "mini")
    job = make_job(write_catalog(tmp_path / "catalog", 1), tiny_folder, "owls@latest")
    with pytest.raises(ConfigurationError, match="adapter owls@latest: trained on mini with fingerprint"):
        check_early(job.parameters)
    with pytest.raises(ConfigurationError, match="no version v2"):
        check_early(make_job(tmp_path / "catalog/catalog.csv", tiny_folder, "owls@v2").parameters)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dino", {"t_sub": "adaptive"}, "t_sub adaptive: adapter here encodes subjects by dino"),
        ("trained", {}, r"features_uri: .* adapter here encodes them by a trained copy of the UNet.*leave"),
    ],
)
def test_what_an_adapters_own_encoder_cannot_do_is_refused_early(
    tiny_folder, tmp_path, monkeypatch, kind, changes, message
):
    monkeypatch.chdir(tmp_path)
    unet = tiny_unet()
    adapters = attach_adapters(unet)
    add_subject_encoder(adapters, unet, kind, location=str(tiny_folder / "dinov2"))
    save_adapter(adapters, tmp_path / "here", AdapterCard())
    job = make_job(write_catalog(tmp_path / "catalog", 1), tiny_folder, "here")
    check_early(job.parameters)
    sampler = job.parameters.sampler.model_copy(update=changes)
    inputs = job.parameters.inputs.model_copy(update={} if changes else {"features_uri": "features"})
    with pytest.raises(ConfigurationError, match=message):
        check_early(replace(job.parameters, sampler=sampler, inputs=inputs))
    check_early(replace(job.parameters, sampler=sampler.model_copy(update={"mode": "text_only"})))


@pytest.mark.slow
def test_a_run_keeps_to_the_version_that_its_alias_meant(uri, tiny_folder, tmp_path, ray_address):
    """And with the next version every item is another one."""
    registry = Registry(uri)
    import_adapter(str(tiny_folder / "adapter"), "owls", str(tiny_folder), registry, alias="production")
    catalog = write_catalog(tmp_path / "catalog", 2)
    job = make_job(catalog, tiny_folder, "owls@production", ray_address)
    with job.hold_output():
        job.make_plan()
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        torch.save(authors_tensors(attach_adapters(tiny_unet())), folder / "pytorch_model.bin")
        import_adapter(str(folder), "owls", str(tiny_folder), registry, alias="production")
        job.make_plan()  # as a stage does that is tried again
        job.work(lambda _: None)
    record = job.output.read_run()
    assert (record.state, record.counts["done"]) == ("finished", 2)
    assert (record.model["adapter"], record.model["adapters_uri"]) == ("owls@v1", uri)
    assert len(image_hashes("out")) == 2

    for adapter, done in (("owls@v1", 2), (str(tiny_folder / "adapter"), 2), ("owls@production", 0)):
        again = make_job(catalog, tiny_folder, adapter)
        again.make_plan()
        assert (again.plan.counts.done, again.plan.counts.to_do) == (done, 2 - done)
