"""Small adapters of the tiny model, and an empty cache for every test."""

from pathlib import Path

import pytest
import torch

from ezigen.adapters import AdapterCard, attach_adapters, save_adapter
from tests.tiny import build_tiny_stack, tiny_unet

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_stack(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's fetched adapters lie."""
    monkeypatch.setenv("EZIGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adapters"


@pytest.fixture
def make_folder(tmp_path: Path):
    """A folder as a training run leaves it, with weights that depend on the seed."""

    def make(seed: int = 0, *, num_extras: int = 1, card: AdapterCard | None = None) -> Path:
        folder = tmp_path / f"final-{seed}"
        torch.manual_seed(seed)
        adapters = attach_adapters(tiny_unet(block_out_channels=(8, 8), attention_head_dim=1, norm_num_groups=4))
        save_adapter(adapters, folder, card or AdapterCard(base_model="tiny", training={"steps": seed}))
        for number in range(num_extras):
            (folder / f"sheet-{number}.jpg").write_bytes(b"picture %d" % number)
        return folder

    return make
