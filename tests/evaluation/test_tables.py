import math
from dataclasses import replace

import numpy as np
import pytest

from ezigen.config import ConfigurationError, SamplerConfig
from tasks.evaluation.paper import (
    ENCODERS,
    LOOPS,
    MODES,
    SUBJECT_TIMESTEP,
    TABLES,
    Claim,
    PaperTable,
    Variant,
    beside,
    choose_tables,
    makeable,
)
from tasks.evaluation.printing import sentence
from tasks.evaluation.tables import ScoredImage, break_down, compare, means_of, measure_table, worst_cases

SUBJECTS, PROMPTS = 8, 4
TABLE = PaperTable(
    "two",
    "0",
    "Two variants",
    "generation",
    ("dino", "clip_t"),
    (Variant("better", "the better", published={"dino": 0.7}), Variant("worse", "the worse")),
    (Claim("dino", "better", "worse"), Claim("clip_t", "better", "worse"), Claim("clip_t", "worse", "better")),
)


def made(variant, level, *, noise=0.01, seed=0):
    rng = np.random.default_rng(seed)
    images = []
    for subject in range(SUBJECTS):
        own = 0.3 * np.sin(subject)
        for prompt in range(PROMPTS):
            scores = {"dino": level + own + noise * rng.normal(), "clip_t": own}
            images.append(ScoredImage(variant, f"s{subject}/p{prompt}", f"s{subject}", f"p{prompt}", scores))
    return images


def test_a_table_has_means_what_was_published_and_a_verdict_on_every_claim():
    images = made("better", 0.6) + made("worse", 0.5, seed=1) + made("of another table", 0.1)
    found = measure_table(TABLE, images, num_cases=SUBJECTS * PROMPTS)
    assert [row.title for row in found.rows] == ["the better", "the worse"]
    assert found.rows[0].published == {"dino": 0.7}
    expected = np.mean([image.scores["dino"] for image in images[: SUBJECTS * PROMPTS]])
    assert found.rows[0].means["dino"].mean == pytest.approx(expected)
    assert found.rows[0].missing == 0
    assert [trend.verdict for trend in found.trends] == ["agrees", "undecided", "undecided"]
    assert found.trends[0].difference.mean == pytest.approx(0.1, abs=0.01)


def test_a_claim_that_does_not_hold_is_said_to_disagree():
    images = made("better", 0.5) + made("worse", 0.6, seed=1)
    assert measure_table(TABLE, images, 32).trends[0].verdict == "disagrees"


def test_missing_images_are_counted_and_never_averaged():
    images = made("better", 0.6)[5:] + made("worse", 0.5)
    broken = ScoredImage("better", "s0/p0", "s0", "p0", {"dino": math.nan})
    found = measure_table(TABLE, [*images, broken], num_cases=32)
    assert found.rows[0].missing == 4
    assert found.rows[0].means["dino"].count == 27
    assert found.trends[0].difference.count == 27


def test_a_variant_that_was_not_made_has_no_row_and_no_trend():
    found = measure_table(TABLE, made("better", 0.6), num_cases=32)
    assert [row.title for row in found.rows] == ["the better"]
    assert found.trends == ()
    assert measure_table(TABLE, [], num_cases=32).rows == ()


def test_differences_are_of_the_same_cases_alone():
    first, second = made("better", 0.6, noise=0), made("worse", 0.5, noise=0)
    assert compare(first[:10], second[5:], "dino").count == 5
    assert compare(first[:10], second[5:], "dino").mean == pytest.approx(0.1)
    assert compare(first[:5], second[5:], "dino") is None


def test_breakdowns_begin_with_the_worst():
    images = made("better", 0.6)
    by_subject = break_down(images, "dino", "subject_id")
    means = {f"s{n}": np.mean([i.scores["dino"] for i in images if i.subject_id == f"s{n}"]) for n in range(SUBJECTS)}
    assert list(by_subject) == sorted(means, key=means.get)
    assert by_subject["s3"].mean == pytest.approx(means["s3"])
    assert by_subject["s3"].clusters == PROMPTS
    assert len(break_down(images, "dino", "prompt_id")) == PROMPTS
    worst = worst_cases(images, "dino", 3)
    assert [image.scores["dino"] for image in worst] == sorted(image.scores["dino"] for image in images)[:3]


def test_less_change_is_better():
    images = [ScoredImage("edit", f"s{n}/0", f"s{n}", "0", {"perceptual": 0.1 * n}) for n in range(3)]
    assert [image.case_id for image in worst_cases(images, "perceptual", 2)] == ["s2/0", "s1/0"]
    assert list(break_down(images, "perceptual", "subject_id")) == ["s2", "s1", "s0"]


def test_measures_that_nobody_has_are_left_out():
    assert set(means_of(made("better", 0.6), ("dino", "face"))) == {"dino"}


# ---- the paper's


def test_claims_are_true_of_the_published_figures():
    """Each claim names two rows whose published figures are in that order."""
    checked = 0
    for table in TABLES.values():
        published = {variant.name: variant.published for variant in table.variants}
        for claim in table.claims:
            high, low = (published[name].get(claim.measure) for name in (claim.higher, claim.lower))
            if high is not None and low is not None:
                assert high > low, (table.name, claim)
                checked += 1
    assert checked >= 17


def test_lines_without_their_adapter_are_published_alone():
    table = makeable(SUBJECT_TIMESTEP, {"trained"})
    assert [variant.name for variant in table.variants][-2:] == ["t_sub_adaptive", "encoder_trained"]
    assert [(one.title, one.figures) for one in table.others] == [
        ("by a trained copy of the UNet, at each step's own timestep", {"dino": 0.589})
    ]
    assert Claim("dino", "full_injection", "encoder_trained") in table.claims
    assert not any(claim.lower == "encoder_trained_adaptive" for claim in table.claims)
    assert makeable(MODES, ()) == MODES


def test_other_methods_are_asked_about_not_claimed():
    table = beside(replace(ENCODERS, measures=("dino", "clip_t", "tflop")), ["IP-Adapter"])
    assert table.variants[-1] == Variant("IP-Adapter", "IP-Adapter", is_external=True)
    assert table.claims[len(ENCODERS.claims) :] == tuple(
        Claim(measure, "full_injection", "IP-Adapter", is_published=False) for measure in ("dino", "clip_t")
    )
    images = made("full_injection", 0.6) + made("IP-Adapter", 0.5)
    measured = measure_table(replace(table, claims=table.claims[-2:]), images, SUBJECTS * PROMPTS)
    assert [sentence(measured, trend).rpartition("], ")[2] for trend in measured.trends] == [
        "higher by more than chance",
        "undecided: the interval holds 0, so more subjects are needed",
    ]


def test_all_tables_are_those_that_a_benchmark_and_its_adapters_allow():
    def names(benchmark, *encoders):
        return [table.name for table in choose_tables(["all"], benchmark, encoders)]

    assert names("mini") == ["dreambench", "editing", "modes", "t_sub", "people", "loops"]
    assert names("mini", "dino") == ["dreambench", "editing", "modes", "t_sub", "encoders", "people", "loops"]
    assert names("dreamedit") == names("mini-dreamedit") == ["editing"]
    assert [table.name for table in choose_tables(["loops", "all", "modes"], "own", ())] == [
        "loops",
        "dreambench",
        "modes",
        "t_sub",
    ]
    with pytest.raises(ConfigurationError, match=r"table encoders compares adapters .* give one of dino, clip"):
        choose_tables(["encoders"], "mini", ())


def test_equal_names_are_equal_variants():
    """What two tables share is made once."""
    samplers = {}
    for table in TABLES.values():
        for variant in table.variants:
            sampler = variant.sampler(SamplerConfig())
            assert samplers.setdefault(variant.name, (sampler, variant.encoder)) == (sampler, variant.encoder)


def test_variants_change_what_they_say_and_nothing_else():
    base = SamplerConfig(num_steps=20, guidance_scale=2.0)
    modes = {variant.name: variant.sampler(base).mode for variant in MODES.variants}
    assert modes == {name: name for name in ("text_only", "full_injection", "decoupled", "iterative")}
    loops = [variant.sampler(base) for variant in LOOPS.variants]
    assert [one.loops.num_loops for one in loops[1:4]] == [1, 5, 10]
    assert all(one.num_steps == 20 and one.guidance_scale == 2.0 for one in loops)
