"""One Ray for the tests of a file: the one that this process is connected to already, or a new one."""

from collections.abc import Iterator

import pytest
import ray

from ezigen.config import RayConfig
from tasks.cluster import connect


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """HOST:PORT of a Ray with place for at least four light workers."""
    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    with connect(RayConfig(num_workers=4)):
        yield ray.get_runtime_context().gcs_address
