from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ezigen.adapters import AdapterSet, attach_adapters, detach_adapters, load_adapter
from ezigen.models import ImageEncoder, Stack, load_image_encoder, load_stack
from tests.tiny import build_tiny_stack, build_tiny_xl_stack

torch.set_num_threads(1)  # on tensors this small a second thread only costs


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_stack(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_stack(tiny_folder: Path) -> Stack:
    """Without adapters; tests that attach some must detach them."""
    return load_stack(str(tiny_folder), device="cpu")


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_xl_stack(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="session")
def xl_stack(xl_folder: Path) -> Stack:
    """Without adapters; tests that attach some must detach them."""
    return load_stack(str(xl_folder), device="cpu")


@pytest.fixture
def xl_adapters(xl_stack: Stack, xl_folder: Path) -> Iterator[AdapterSet]:
    """The tiny adapter of the tiny XL stack, attached to it, idle; detached afterwards."""
    attached = attach_adapters(xl_stack.unet)
    load_adapter(attached, xl_folder / "adapter", base_fingerprint=xl_stack.fingerprint)
    yield attached
    detach_adapters(xl_stack.unet)


@pytest.fixture
def adapters(tiny_stack: Stack, tiny_folder: Path) -> Iterator[AdapterSet]:
    """The tiny adapter, attached to the tiny stack, idle; detached afterwards."""
    attached = attach_adapters(tiny_stack.unet)
    load_adapter(attached, tiny_folder / "adapter", base_fingerprint=tiny_stack.fingerprint)
    yield attached
    detach_adapters(tiny_stack.unet)


@pytest.fixture(scope="session")
def dinov2(tiny_folder: Path) -> ImageEncoder:
    return load_image_encoder(str(tiny_folder / "dinov2"), "cpu")
