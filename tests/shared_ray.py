"""One Ray for all tests of a process: starting one costs ten seconds of CPU, and joining its workers none.

Tests that kill a Ray, or look at how one is started, have their own in a process of their own.
"""

import os
from collections.abc import Iterator

import pytest
import ray

from ezigen.config import RayConfig
from tasks.cluster import connect


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """HOST:PORT of a Ray that this process is connected to, with place for four light workers."""
    with connect(RayConfig(num_workers=4)):
        yield ray.get_runtime_context().gcs_address


def plain_environment() -> dict[str, str]:
    """The environment as it is without a Ray: what a process started with it does about Ray is its own doing."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
