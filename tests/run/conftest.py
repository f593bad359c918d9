"""One Ray for all tests of the pool, and what they look at."""

import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from ezigen.config import ClusterConfig, ModelConfig
from tasks.cluster import connect


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray for the tests of a file, with place for four light workers; other files start one of their own."""
    with connect(ClusterConfig(num_workers=4, cpus_per_worker=1)) as cluster:
        yield cluster


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
