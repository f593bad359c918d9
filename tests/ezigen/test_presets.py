"""Presets and speeds, as configuration."""

import pytest

from ezigen.config import (
    SPEEDS,
    TRAINING_PRESETS,
    SamplerConfig,
    TrainingConfig,
    balanced,
    draft,
    embedded,
    exact,
    paper,
)
from ezigen.config.presets import foreground_only, guide_first, second_order, stop_by_latents
from ezigen.config.training import paper_training, paper_xl_training
from tasks.catalog.estimates import expected_unet_calls


@pytest.mark.parametrize("preset", [paper, embedded])
def test_each_speed_costs_less_than_the_one_before(preset):
    costs = [expected_unet_calls(speed(preset())) for speed in (exact, balanced, draft)]
    assert costs[0] > 1.5 * costs[1] > 1.5 * 1.5 * costs[2]


@pytest.mark.parametrize("name", SPEEDS)
@pytest.mark.parametrize("mode", ["text_only", "full_injection", "decoupled", "iterative"])
@pytest.mark.parametrize("num_steps", [2, 3, 50, 1000])
def test_a_speed_of_a_valid_sampler_is_valid(name, mode, num_steps):
    made = SPEEDS[name](SamplerConfig(mode=mode, num_steps=num_steps, split_ratio=0.5))
    assert SamplerConfig.model_validate(made.model_dump()) == made
    assert made.mode == mode
    assert made.num_transfer_steps >= 1


def test_exact_changes_nothing():
    assert exact(embedded()) == embedded()


def test_a_guided_share_is_a_share_of_the_noise_levels():
    """Of the 20 transfer timesteps 381, 361, ..., 1 of the paper's 50 steps, the upper half keeps guidance."""
    made = guide_first(paper(), 0.5)
    assert [made.is_guided(t) for t in (981, 401, 381, 201, 181, 1)] == [True, True, True, True, False, False]
    assert not guide_first(paper(), 0.0).is_guided(381)
    assert guide_first(paper(), 0.0).is_guided(401)
    assert guide_first(paper(), 1.0).is_guided(1)


def test_savings_are_independent():
    """Each changes fields of its own, so their order does not matter but for the counts that follow from others."""
    changed = [
        {name for name in type(made).model_fields if getattr(made, name) != getattr(paper(), name)}
        for made in (second_order(paper()), guide_first(paper()), foreground_only(paper()), stop_by_latents(paper()))
    ]
    assert changed == [{"solver", "num_steps"}, {"guidance_min_timestep"}, {"subject_tokens"}, {"loops"}]


DIGESTS = {
    "paper": "c7904a0ef868f7d64ad9387e7c38ad51",
    "released": "3499eb96a3a465d319c6017b95a816ce",
    "recommended": "c518664ee10fc78da11b07e55dc4827b",
}
"""Of training runs that were stored before there was a share of empty captions for each kind of model."""


def test_xl_leaves_out_30_percent_of_the_captions_and_other_runs_go_on():
    for name, preset in TRAINING_PRESETS.items():
        if name in DIGESTS:
            assert preset().for_model(xl=False).digest() == DIGESTS[name]
    shares = {name: preset().for_model(xl=True).text_dropout for name, preset in TRAINING_PRESETS.items()}
    assert shares == {"paper": 0.0, "paper-xl": 0.3, "released": 0.0, "recommended": 0.3}
    assert TrainingConfig(text_dropout=0.1).for_model(xl=True).text_dropout == 0.1
    assert paper_xl_training().model_copy(update={"text_dropout": 0.0}) == paper_training()
