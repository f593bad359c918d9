"""A tiny model, and what tests of runs wait for."""

import time
from collections.abc import Callable

import psutil
import pytest

from ezigen.config import ModelConfig


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A real stack of random weights."""
    from tests.tiny import build_tiny_stack

    folder = build_tiny_stack(tmp_path_factory.mktemp("tiny"))
    return ModelConfig(model=str(folder), adapter=str(folder / "adapter"), image_encoder=str(folder / "dinov2"))


@pytest.fixture(scope="session")
def xl_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A real stack of random weights in the shape of Stable Diffusion XL."""
    from tests.tiny import build_tiny_xl_stack

    folder = build_tiny_xl_stack(tmp_path_factory.mktemp("xl"))
    return ModelConfig(model=str(folder), adapter=str(folder / "adapter"), image_encoder=str(folder / "dinov2"))


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "the condition") -> None:
    """Fails if the condition does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
