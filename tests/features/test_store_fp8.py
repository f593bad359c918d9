"""Eight-bit tokens: every number within the bound that the format allows, whatever it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.features import FeatureStore, PackedFeatures
from tasks.features.fp8 import FP8, FP8_MAX, dequantize, error_bound, quantize
from tests.features.stores import BLOCKS, SD21_BLOCKS, random_features, subject_key, write_features

NUMBERS = st.floats(-60000, 60000, width=32)


@given(st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=1, max_size=4))
@settings(deadline=None)
def test_every_number_is_within_its_bound(rows):
    tokens = torch.tensor(rows)
    values, scales = quantize(tokens)
    error = (dequantize(values, scales, torch.float32) - tokens).abs()
    assert (error <= error_bound(tokens)).all()


def test_every_value_of_e4m3_becomes_the_number_that_it_stands_for():
    """Zeros of both signs, subnormal numbers and all others, with scales from the least to the greatest."""
    values = torch.arange(256, dtype=torch.uint8).view(FP8)
    values = values[~values.float().isnan()]
    assert len(values) == 254
    for scale in (2.0**-126, 1e-30, 0.3, 1.0, 777.0, 7.5e35):
        tokens = dequantize(values[None], torch.tensor([scale]), torch.float32)[0]
        expected = values.float() * scale
        assert torch.equal(tokens, expected)
        assert torch.equal(tokens.signbit(), expected.signbit())


def test_the_bound_is_as_tight_as_three_bits_allow():
    """Numbers half-way between two neighbours of e4m3 reach it: one bit less would fail the test above."""
    tokens = torch.tensor([[FP8_MAX, 17.0, 1.0625, 2.0**-10]])
    values, scales = quantize(tokens)
    error = (dequantize(values, scales, torch.float32) - tokens).abs()
    bound = error_bound(tokens)
    assert (error[0, 1:] >= torch.tensor([0.9, 0.9, 0.9]) * torch.tensor([1.0, 0.0625, 2.0**-10])).all()
    assert (error <= bound).all()


def test_each_token_has_the_scale_of_its_own_largest_number():
    tokens = torch.stack([torch.full((8,), 100.0), torch.full((8,), 1e-3), torch.zeros(8)])
    values, scales = quantize(tokens)
    assert values.dtype == FP8
    assert torch.allclose(scales, torch.tensor([100 / FP8_MAX, 1e-3 / FP8_MAX, 1.0]))
    assert torch.allclose(dequantize(values, scales, torch.float32), tokens, rtol=1e-6)


@pytest.mark.parametrize("tokens", ["all", "foreground"])
@pytest.mark.parametrize("row_group_mib", [0, 1])
def test_stored_subjects_are_within_the_bound_block_by_block(tmp_path, tokens, row_group_mib):
    write_features(tmp_path, dtype="fp8", tokens=tokens, row_group_mib=row_group_mib)
    store = FeatureStore.open(str(tmp_path), check=True)
    for number in range(10):
        batch = store.read_subjects([subject_key(number)])
        expected = random_features(number)
        for block in BLOCKS:
            kept = ... if batch.kept is None else batch.kept[block.name][0]
            given_, found = (
                expected.tokens[block.name][0][kept],
                batch.packed.unpack(torch.float32).tokens[block.name][0],
            )
            assert (found - given_).abs().le(error_bound(given_)).all()
            assert (found - given_).abs().max() > 0
            assert batch.features.tokens[block.name].dtype == torch.float16


def test_a_batch_of_foreground_subjects_unpacks_like_each_alone(tmp_path):
    write_features(tmp_path, dtype="fp8", tokens="foreground")
    store = FeatureStore.open(str(tmp_path))
    batch = store.read_subjects([subject_key(number) for number in (3, 1, 0)])
    for index, one in enumerate(batch.ids):
        alone = store.read_subject(one)
        for name, tokens in alone.tokens.items():
            count = tokens.shape[1]
            assert torch.equal(batch.features.tokens[name][index, :count], tokens[0])
            assert batch.features.mask is not None
            assert batch.features.mask[name][index].sum() == count


def test_the_error_of_each_block_of_sd21_is_known():
    """Tokens as a LayerNorm leaves them lose about 2.6 % in the mean square, in every block alike."""
    features = random_features(0, SD21_BLOCKS)
    packed = PackedFeatures.of(features, "fp8").unpack(torch.float32)
    for name, tokens in features.tokens.items():
        relative = ((packed.tokens[name] - tokens).square().mean() / tokens.square().mean()).sqrt()
        assert 0.02 < relative < 0.03, name
