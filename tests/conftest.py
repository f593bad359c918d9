"""Fixtures for every test, and their order."""

import pytest

from tests.s3_server import s3_folder, s3_server
from tests.shared_ray import ray_address

__all__ = ["ray_address", "s3_folder", "s3_server"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: with several processes, none of them is left alone with a long one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
