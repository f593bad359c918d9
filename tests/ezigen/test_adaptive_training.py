"""Subjects encoded at each sample's own timestep (paper, Table 4)."""

from dataclasses import replace

import pytest
import torch

from ezigen.config import ConfigurationError, TrainingConfig
from ezigen.subject import SubjectEncoder
from ezigen.training import Conditioner, draw, without_dropout
from tests.ezigen.training_batches import CLASSES, make_batch, random

CONFIG = TrainingConfig(subject_timestep="adaptive")


def test_features_are_those_of_the_samples_timesteps(tiny_stack):
    """Three samples with up to two subjects, each picture encoded by itself."""
    positions, slots = [0, 1, 2], [[True, True], [True, False], [True, True]]
    batch = make_batch(tiny_stack, positions, policy="recompute", slots=slots)
    draws = without_dropout(draw(CONFIG, batch))
    assert len(set(draws.timesteps.tolist())) == 3
    found = Conditioner(tiny_stack, t_sub=1, adaptive=True).conditions(batch, draws).subject
    encoder = SubjectEncoder(tiny_stack)
    for row, position in enumerate(positions):
        for slot, exists in enumerate(slots[row]):
            pixels = random((3, 32, 32), position, slot).clamp(-1, 1)[None]
            t = int(draws.timesteps[row])
            expected = encoder.encode(pixels, [CLASSES[(position + slot) % 4]], t_sub=t)
            for name, tokens in expected.tokens.items():
                num_tokens = tokens.shape[1]
                place = slice(slot * num_tokens, (slot + 1) * num_tokens)
                assert found.mask[name][row, place].unique().tolist() == [exists]
                if exists:
                    assert torch.allclose(found.tokens[name][row, place], tokens[0], atol=1e-5)


def test_the_store_decides_where_nothing_is_said(tiny_stack):
    batch = make_batch(tiny_stack, [0, 1], policy="recompute")
    draws = without_dropout(draw(CONFIG, batch))
    early = replace(draws, timesteps=torch.tensor([7, 7]))
    adaptive = Conditioner(tiny_stack, t_sub=1, adaptive=True).conditions(batch, early).subject
    stored = Conditioner(tiny_stack, t_sub=7).conditions(batch, draws).subject
    assert all(torch.equal(adaptive.tokens[name], tokens) for name, tokens in stored.tokens.items())


def test_features_of_one_timestep_are_refused(tiny_stack):
    batch = make_batch(tiny_stack, [0])
    with pytest.raises(ConfigurationError, match="features of t_sub 1; use a store of latents"):
        Conditioner(tiny_stack, t_sub=1, adaptive=True).conditions(batch, draw(CONFIG, batch))


@pytest.mark.parametrize(
    ("changes", "named"), [({"mask_padding": False}, "mask_padding"), ({"features": "stored"}, "features")]
)
def test_settings_that_contradict_it(changes, named):
    with pytest.raises(ValueError, match=f"subject_timestep adaptive needs {named}"):
        TrainingConfig(subject_timestep="adaptive", **changes)
    assert CONFIG.digest() != TrainingConfig().digest()
    assert CONFIG.identity() == {**TrainingConfig().identity(), "subject_timestep": "adaptive"}
