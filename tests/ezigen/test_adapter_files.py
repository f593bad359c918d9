"""Adapters on disk: what is written comes back, what does not fit is refused, nothing is executed."""

import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ezigen.adapters import (
    AdapterCard,
    adapter_fingerprint,
    attach_adapters,
    import_checkpoint,
    load_adapter,
    read_card,
    resolve_adapter,
    save_adapter,
)
from ezigen.config import ConfigurationError
from tests.tiny import tiny_unet


@pytest.fixture
def trained():
    torch.manual_seed(0)
    adapters = attach_adapters(tiny_unet())
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return adapters


def fresh(**options):
    return attach_adapters(tiny_unet(), **options)


def assert_equal(one, other):
    assert set(one.tensors()) == set(other.tensors())
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def test_what_is_saved_comes_back(trained, tmp_path):
    card = AdapterCard(base_model="tiny", base_fingerprint="ab" * 16, training={"steps": 7, "learning_rate": 1e-4})
    written = save_adapter(trained, tmp_path / "version", card)
    restored = fresh()
    read = load_adapter(restored, tmp_path / "version", base_fingerprint="ab" * 16)
    assert_equal(restored, trained)
    assert read == written == read_card(tmp_path / "version")
    assert (read.num_adapters, read.num_parameters) == (7, trained.num_parameters)
    assert sorted(path.name for path in (tmp_path / "version").iterdir()) == ["adapter.safetensors", "card.json"]


def test_stored_names_are_clear(trained, tmp_path):
    save_adapter(trained, tmp_path, AdapterCard())
    names = set(load_file(tmp_path / "adapter.safetensors"))
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    parts = {"norm.weight", "norm.bias", "to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "to_out.bias"}
    assert {f"{block}.{part}" for part in parts} <= names
    assert len(names) == 7 * 7 + 1


def test_loading_casts_to_the_precision_of_the_stack(trained, tmp_path):
    save_adapter(trained, tmp_path, AdapterCard())
    half = fresh().to(torch.bfloat16)
    load_adapter(half, tmp_path, base_fingerprint=None)
    name = "mid_block.attentions.0.transformer_blocks.0.to_q.weight"
    assert half.tensors()[name].dtype == torch.bfloat16
    assert torch.equal(half.tensors()[name], trained.tensors()[name].bfloat16())


def test_another_base_is_refused_unless_told(trained, tmp_path):
    save_adapter(trained, tmp_path, AdapterCard(base_model="tiny", base_fingerprint="ab" * 16))
    with pytest.raises(ConfigurationError, match=r"trained on tiny .*base_fingerprint"):
        load_adapter(fresh(), tmp_path, base_fingerprint="cd" * 16)
    load_adapter(fresh(), tmp_path, base_fingerprint=None)
    save_adapter(trained, tmp_path, AdapterCard())  # a card that names no base
    load_adapter(fresh(), tmp_path, base_fingerprint="cd" * 16)


def test_the_residual_belongs_to_the_adapter(trained, tmp_path):
    save_adapter(trained, tmp_path, AdapterCard())
    with pytest.raises(ConfigurationError, match="extra_residual"):
        load_adapter(fresh(extra_residual=True), tmp_path, base_fingerprint=None)
    save_adapter(fresh(extra_residual=True), tmp_path, AdapterCard())
    assert read_card(tmp_path).extra_residual


@pytest.mark.parametrize(
    "change", ["missing tensor", "other shape", "truncated", "no card", "wrong card", "lfs pointer"]
)
def test_what_does_not_fit_is_refused_by_name(trained, tmp_path, change):
    save_adapter(trained, tmp_path, AdapterCard())
    path, name = tmp_path / "adapter.safetensors", "mid_block.attentions.0.transformer_blocks.0.to_q.weight"
    tensors = load_file(path)
    if change == "missing tensor":
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    elif change == "other shape":
        save_file({**tensors, name: torch.zeros(3, 3)}, path)
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif change == "lfs pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    elif change == "no card":
        (tmp_path / "card.json").unlink()
    else:
        (tmp_path / "card.json").write_text(json.dumps({"colour": "red"}))
    expected = {
        "missing tensor": "1 of 50 tensors are missing: mid_block",
        "other shape": r"mid_block.*shape \(3, 3\)",
        "truncated": "download it again",
        "lfs pointer": "git lfs pull",
        "no card": r"card\.json is missing",
        "wrong card": "not an adapter card",
    }
    adapters = fresh()
    before = {key: tensor.clone() for key, tensor in adapters.tensors().items()}
    with pytest.raises(ConfigurationError, match=expected[change]):
        load_adapter(adapters, tmp_path, base_fingerprint=None)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapters.tensors().items())


# --- the authors' checkpoint ---


def authors_tensors(adapters, *, with_weights=True):
    """A whole UNet with the authors' names for the adapters, and subject weights 1, 2, 3 ... in order of execution."""
    tensors = {f"{name}.unrelated": torch.zeros(2) for name in adapters.names}
    tensors["conv_in.weight"] = torch.randn(4, 4)
    for name in adapters.names:
        adapter = adapters[name]
        prefix = f"{name}.adapter"
        for part in ("to_q", "to_k", "to_v"):
            tensors[f"{prefix}.{part}.weight"] = getattr(adapter, part).weight.detach().clone()
        tensors[f"{prefix}.to_out.0.weight"] = adapter.to_out.weight.detach().clone()
        tensors[f"{prefix}.to_out.0.bias"] = adapter.to_out.bias.detach().clone()
        tensors[f"{prefix}_norm.weight"] = adapter.norm.weight.detach().clone()
        tensors[f"{prefix}_norm.bias"] = adapter.norm.bias.detach().clone()
    if with_weights:
        tensors["learnable_weights"] = torch.arange(1.0, len(adapters) + 1)
    return tensors


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_authors_checkpoint(trained, tmp_path, kind):
    tensors = authors_tensors(trained)
    folder = tmp_path / "checkpoint-200000"
    folder.mkdir()
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    trap = tmp_path / "sprung"
    for name in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap(trap)))
    adapters = fresh(extra_residual=True)
    card = import_checkpoint(folder, adapters)
    assert not trap.exists()
    assert card.extra_residual
    for name, tensor in trained.tensors().items():
        if not name.endswith("subject_weight"):
            assert torch.equal(adapters.tensors()[name], tensor)
    order = [adapters[name].subject_weight.item() for name in sorted(adapters.names, key=execution)]
    assert order == [1, 2, 3, 4, 5, 6, 7]


def execution(name):
    stage, index = name.split(".")[:2]
    return ("down_blocks", "mid_block", "up_blocks").index(stage), index, name


def test_execution_order_is_that_of_the_forward_pass():
    from ezigen.adapters.weights import _execution_order
    from ezigen.models import transformer_blocks

    unet, seen = tiny_unet(layers_per_block=2), []
    for name, block in transformer_blocks(unet).items():
        block.register_forward_hook(lambda *_, name=name: seen.append(name))
    unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 16, 32))
    assert _execution_order(tuple(transformer_blocks(unet))) == seen


def test_older_checkpoints_without_weights_mean_ones(trained, tmp_path):
    save_file(authors_tensors(trained, with_weights=False), tmp_path / "model.safetensors")
    adapters = fresh(extra_residual=True)
    import_checkpoint(tmp_path / "model.safetensors", adapters)
    assert {adapters[name].subject_weight.item() for name in adapters.names} == {1.0}


def test_a_checkpoint_of_sd21_base_has_113_tensors():
    from tests.ezigen.test_adapters import SD21_BASE, meta

    tensors = authors_tensors(attach_adapters(meta(SD21_BASE)))
    wanted = {name: tensor for name, tensor in tensors.items() if "adapter" in name or name == "learnable_weights"}
    assert len(wanted) == 113
    assert sum(tensor.numel() for tensor in wanted.values()) == 49_599_056


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "sprung"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"learnable_weights": Trap(trap)}))
    with pytest.raises(ConfigurationError, match="refused"):
        import_checkpoint(tmp_path, fresh(extra_residual=True))
    assert not trap.exists()


def test_an_incomplete_checkpoint_is_refused(trained, tmp_path):
    tensors = authors_tensors(trained)
    del tensors["mid_block.attentions.0.transformer_blocks.0.adapter.to_k.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"1 of 49 tensors are missing: mid_block.*\.adapter\.to_k\.weight"):
        import_checkpoint(tmp_path, fresh(extra_residual=True))
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin"):
        import_checkpoint(tmp_path / "nowhere", fresh(extra_residual=True))


# --- without torch ---


def test_fingerprints_follow_weights_and_use_not_the_story(trained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    save_adapter(trained, one, AdapterCard(training={"steps": 1}))
    shutil.copytree(one, two)
    assert adapter_fingerprint(str(one)) == adapter_fingerprint(str(two))
    save_adapter(trained, two, AdapterCard(training={"steps": 2}))
    assert adapter_fingerprint(str(one)) == adapter_fingerprint(str(two))
    changed = read_card(two).model_copy(update={"extra_residual": True})
    (two / "card.json").write_text(changed.model_dump_json())
    assert adapter_fingerprint(str(one)) != adapter_fingerprint(str(two))
    save_adapter(fresh(), one, AdapterCard())
    assert len({adapter_fingerprint(str(one)), adapter_fingerprint(str(two)), adapter_fingerprint("none")}) == 3


def test_planning_needs_no_torch(tiny_folder):
    code = f"""
import sys
from ezigen.adapters import adapter_fingerprint
from ezigen.images import decode_picture
from ezigen.metrics import __all__
from ezigen.models import model_fingerprint
from ezigen.sampling import Request
print(model_fingerprint({str(tiny_folder)!r}), adapter_fingerprint({str(tiny_folder / "adapter")!r}))
assert not {{"torch", "diffusers", "transformers"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [len(word) for word in result.stdout.split()] == [32, 32]


def test_locations_of_adapters(tmp_path):
    assert resolve_adapter("none", "mini") is None
    with pytest.raises(ConfigurationError, match="none is shipped for model sd"):
        resolve_adapter("auto", "sd")
    with pytest.raises(ConfigurationError, match=r"adapter\.safetensors"):
        resolve_adapter(str(tmp_path), "mini")
