"""The tiny stack, which the tests of training share with those of features."""

from tests.features.conftest import tiny_folder, tiny_stack

__all__ = ["tiny_folder", "tiny_stack"]
