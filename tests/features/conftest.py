"""The tiny stack, which all tests of features share."""

from pathlib import Path

import pytest
import torch

from ezigen.models import Stack, load_stack
from tests.tiny import build_tiny_stack

torch.set_num_threads(1)  # on tensors this small a second thread only costs


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_stack(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_stack(tiny_folder: Path) -> Stack:
    return load_stack(str(tiny_folder), device="cpu")
