"""Fixtures for every test, and their order."""

from pathlib import Path

import pytest

from tests.s3_server import s3_folder, s3_server
from tests.shared_ray import ray_address

__all__ = ["ray_address", "s3_folder", "s3_server"]

LONGEST = (
    "training/test_run.py",
    "features/test_run.py",
    "pairs_run/test_run_pairs.py",
    "flows/test_command_line.py",
    "flows/test_training_flow.py",
    "engine/test_engine.py",
    "run/test_catalog_run.py",
    "run/test_real_engine.py",
    "flows/test_training_data.py",
    "evaluation/test_baselines.py",
    "evaluation/test_evaluation_run.py",
    "flows/test_training_commands.py",
)
"""Files that take minutes, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest and slow files first: with several processes, none of them is left alone with a long one in the end."""
    folder = Path(__file__).parent
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}

    def rank(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.relative_to(folder).as_posix()
        return (LONGEST.index(name) if name in LONGEST else len(LONGEST), item.path not in slow)

    items.sort(key=rank)
