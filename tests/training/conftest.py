"""The tiny stack and one Ray, which the tests of training share with those of features."""

from tests.features.conftest import ray_address, tiny_folder, tiny_stack

__all__ = ["ray_address", "tiny_folder", "tiny_stack"]
