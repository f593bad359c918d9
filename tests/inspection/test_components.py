"""Tokens as pictures."""

import numpy as np
import pytest

from tasks.inspection.components import EMPTY, draw_components, project


def test_components_are_those_of_a_singular_value_decomposition():
    tokens = np.random.default_rng(0).normal(size=(64, 20)).astype(np.float32) * np.linspace(5, 0.1, 20)
    for values in (tokens, tokens[:9]):  # more tokens than channels, and fewer
        centred = values - values.mean(axis=0)
        left, sizes, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
        expected = left[:, :3] * sizes[:3]
        found = project(values.astype(np.float32))
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
        assert ((found**3).sum(axis=0) >= 0).all()


def test_regions_of_a_grid_are_told_apart():
    grid = np.zeros((8, 8, 6), np.float32)
    grid[2:6, 2:6, 0], grid[:4, :, 1] = 10, 3
    picture = np.asarray(draw_components(grid.reshape(64, 6))).astype(int)
    assert (picture[3, 3] == picture[3, 4]).all()
    assert np.abs(picture[3, 3] - picture[0, 0]).max() > 200
    assert np.abs(picture[0, 0] - picture[7, 7]).max() > 100


def test_tokens_that_are_not_stored_are_grey_cells():
    kept = np.zeros(16, bool)
    kept[[1, 6, 11]] = True
    picture = np.asarray(draw_components(np.eye(3, 5, dtype=np.float32), kept)).reshape(16, 3)
    assert (picture[~kept] == EMPTY).all()
    assert len(np.unique(picture[kept], axis=0)) == 3


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_too_few_tokens_for_components_are_no_error(num_tokens):
    kept = np.arange(4) < num_tokens
    picture = np.asarray(draw_components(np.ones((num_tokens, 8), np.float32), kept)).reshape(4, 3)
    assert (picture[num_tokens:] == EMPTY).all()


def test_equal_tokens_are_one_colour_and_other_numbers_than_squares_are_refused():
    assert len(np.unique(np.asarray(draw_components(np.ones((16, 4), np.float32))))) == 1
    with pytest.raises(ValueError, match="no square grid"):
        draw_components(np.ones((15, 4), np.float32))
