"""Adapters that were made elsewhere: the authors' checkpoint, our folders, and what does not fit by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ezigen.adapters import (
    AdapterCard,
    adapter_fingerprint,
    add_subject_encoder,
    attach_adapters,
    import_checkpoint,
    load_adapter,
    read_card,
    save_adapter,
)
from ezigen.adapters.card import is_authors_tensor
from ezigen.config import ConfigurationError
from ezigen.mini import weights_folder
from ezigen.models import model_fingerprint
from tasks.adapters import Registry
from tasks.adapters.importing import import_adapter
from tests.ezigen.test_adapter_files import authors_tensors
from tests.ezigen.test_adapters import SD21_BASE, meta
from tests.tiny import tiny_unet

SHIPPED = Path(weights_folder()) / "adapter"


@pytest.fixture
def registry(tmp_path):
    return Registry(str(tmp_path / "adapters"))


@pytest.fixture
def trained():
    torch.manual_seed(5)
    adapters = attach_adapters(tiny_unet())
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    return adapters


def write_checkpoint(tensors, folder, kind):
    folder.mkdir(exist_ok=True)
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_authors_checkpoint_becomes_a_version(registry, trained, tiny_folder, tmp_path, kind):
    folder = write_checkpoint(authors_tensors(trained), tmp_path / "checkpoint-200000", kind)
    published = import_adapter(str(folder), "authors", str(tiny_folder), registry, alias="latest")
    assert published == registry.resolve("authors@latest")
    assert published.card.extra_residual
    assert published.card.base_fingerprint == model_fingerprint(str(tiny_folder))
    restored, direct = (attach_adapters(tiny_unet(), extra_residual=True) for _ in range(2))
    load_adapter(restored, published.uri, base_fingerprint=published.card.base_fingerprint)
    import_checkpoint(folder, direct)
    for name, tensor in direct.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor)
    assert import_adapter(str(folder), "authors", str(tiny_folder), registry).version == "v1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 of 49 tensors are missing: mid_block\S*\.adapter\.to_q\.weight"),
        ("extra", r"1 belong to no adapter of this model: up_blocks\.7\S*\.adapter\.to_q\.weight"),
        ("both", r"1 of 49 .*; 1 belong to no adapter"),
        ("weights", r"learnable_weights has shape \(3,\), the model has 7 adapters"),
        ("shape", r"mid_block\S*\.to_q\.weight has shape \(3, 3\)"),
    ],
)
def test_what_does_not_fit_in_a_checkpoint_is_named(registry, trained, tiny_folder, tmp_path, change, message):
    tensors = authors_tensors(trained)
    name = "mid_block.attentions.0.transformer_blocks.0.adapter.to_q.weight"
    if change in ("extra", "both"):
        tensors["up_blocks.7.attentions.0.transformer_blocks.0.adapter.to_q.weight"] = torch.zeros(2)
    if change in ("missing", "both"):
        del tensors[name]
    if change == "weights":
        tensors["learnable_weights"] = torch.ones(3)
    if change == "shape":
        tensors[name] = torch.zeros(3, 3)
    folder = write_checkpoint(tensors, tmp_path / "checkpoint", "safetensors")
    with pytest.raises(ConfigurationError, match=message):
        import_adapter(str(folder), "authors", str(tiny_folder), registry)
    assert registry.names() == ()


def test_one_of_our_folders_keeps_its_bytes_and_so_its_fingerprint(registry, tmp_path):
    published = import_adapter(str(SHIPPED), "toys", "mini", registry, alias="latest")
    assert adapter_fingerprint(published.uri) == adapter_fingerprint("auto")
    assert published.card.base_fingerprint == model_fingerprint("mini")
    assert (published.card.num_adapters, published.card.num_parameters) == (9, 642_441)
    assert published.card.training == read_card(SHIPPED).training
    again = import_adapter(published.uri, "toys", "mini", Registry(str(tmp_path / "other")))
    assert adapter_fingerprint(again.uri) == adapter_fingerprint("auto")


def test_a_picture_that_is_none_is_not_published(registry, tmp_path):
    folder, private = tmp_path / "theirs", tmp_path / "id_ed25519"
    shutil.copytree(SHIPPED, folder)
    private.write_text("private")
    (folder / "sheet.jpg").symlink_to(private)
    Image.new("RGB", (20, 20)).save(folder / "figures.png")
    published = import_adapter(str(folder), "toys", "mini", registry)
    assert set(published.card.files) == {"figures.png"}


def test_an_adapter_with_its_own_subject_encoder_is_imported_whole(registry, tiny_folder, tmp_path):
    """And whoever looks at it is told."""
    from flows.adapter_commands import _describe_card
    from tasks.inspection.adapter_folder import inspect_adapter

    location = str(tiny_folder / "dinov2")
    words = {"trained": "a trained copy of the UNet", "dino": f"dino {location} with trained projectors"}
    for kind, said in words.items():
        unet = tiny_unet()
        adapters = attach_adapters(unet, blocks=("mid",))
        add_subject_encoder(adapters, unet, kind, location=location)
        save_adapter(adapters, tmp_path / kind, AdapterCard())
        published = import_adapter(str(tmp_path / kind), kind, str(tiny_folder), registry)
        assert adapter_fingerprint(published.uri) == adapter_fingerprint(str(tmp_path / kind))
        assert published.card.num_parameters == adapters.num_parameters
        for facts in (_describe_card(published), inspect_adapter(Path(published.uri)).facts):
            assert said in dict(facts)["subject encoder"]
        tensors = load_file(tmp_path / kind / "adapter.safetensors")
        del tensors[next(name for name in tensors if name.startswith("subject_encoder."))]
        save_file(tensors, tmp_path / kind / "adapter.safetensors")
        with pytest.raises(ConfigurationError, match=r"1 of \d+ tensors are missing: subject_encoder\."):
            import_adapter(str(tmp_path / kind), kind, str(tiny_folder), registry)


def test_an_adapter_of_another_model_is_refused(registry, tiny_folder):
    with pytest.raises(ConfigurationError, match="trained on mini with fingerprint"):
        import_adapter(str(SHIPPED), "toys", str(tiny_folder), registry)


def test_missing_and_extra_tensors_of_our_own_folders_are_named(trained, tmp_path):
    save_adapter(trained, tmp_path, AdapterCard())
    tensors = load_file(tmp_path / "adapter.safetensors")
    removed = tensors.pop("mid_block.attentions.0.transformer_blocks.0.norm.bias")
    save_file({**tensors, "colour": removed}, tmp_path / "adapter.safetensors")
    with pytest.raises(ConfigurationError, match=r"1 of 50 .*norm\.bias; 1 belong to no adapter of this model: colour"):
        load_adapter(attach_adapters(tiny_unet()), tmp_path, base_fingerprint=None)


def test_the_first_format_is_still_read(trained, tmp_path):
    """One scalar per adapter by itself, as the shipped adapter is stored."""
    save_file({name: tensor.detach() for name, tensor in trained.tensors().items()}, tmp_path / "adapter.safetensors")
    (tmp_path / "card.json").write_text(json.dumps({"format_version": 1, "base_model": "tiny"}))
    restored = attach_adapters(tiny_unet())
    assert load_adapter(restored, tmp_path, base_fingerprint=None).name == ""
    for name, tensor in trained.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor)
    (tmp_path / "card.json").write_text(json.dumps({"format_version": 2}))
    with pytest.raises(ConfigurationError, match=r"are missing: subject_weights; 7 belong to no adapter"):
        load_adapter(restored, tmp_path, base_fingerprint=None)


def test_the_adapter_of_sd21_base(tmp_path):
    """113 tensors, 49,599,056 numbers, at most 200 MB; the authors' layout of it, with a UNet around, is the same."""
    torch.manual_seed(0)
    adapters = attach_adapters(meta(SD21_BASE), extra_residual=True).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.uniform_(-1, 1)
    save_adapter(adapters, tmp_path / "ours", AdapterCard())
    path = tmp_path / "ours" / "adapter.safetensors"
    assert path.stat().st_size <= 200_000_000
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a dict
    assert len(shapes) == 113
    assert sum(torch.Size(shape).numel() for shape in shapes) == 49_599_056

    tensors = authors_tensors(adapters)
    tensors["learnable_weights"] = load_file(path)["subject_weights"]
    assert sum(is_authors_tensor(name) for name in tensors) == 113 < len(tensors)
    restored = attach_adapters(meta(SD21_BASE), extra_residual=True).to_empty(device="cpu")
    for kind in ("safetensors", "bin"):
        import_checkpoint(write_checkpoint(tensors, tmp_path / kind, kind), restored)
        assert all(torch.equal(restored.tensors()[name], own) for name, own in adapters.tensors().items())
        with torch.no_grad():
            for parameter in restored.parameters():
                parameter.zero_()
    load_adapter(restored, tmp_path / "ours", base_fingerprint=None)
    assert all(torch.equal(restored.tensors()[name], own) for name, own in adapters.tensors().items())
