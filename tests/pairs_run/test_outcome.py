"""The end of a run in numbers."""

import pytest

from tasks.pairs import PairOutcome, SourceOutcome


@pytest.mark.parametrize(
    ("wanted", "built", "candidates", "share"),
    [(100, 100, 1_000, 0.0), (100, 50, 1_000, 0.5), (100, 30, 60, 0.5), (100, 60, 60, 0.0), (5, 0, 0, 0.0)],
)
def test_what_counts_is_which_pairs_refusals_left_missing(wanted, built, candidates, share):
    refused = {"mask_too_small": 120 * wanted}  # one object that never fits may be refused 120 times
    outcome = PairOutcome("run", "finished", built, refused, {"youtube_vis": SourceOutcome(wanted, built, candidates)})
    assert outcome.refused_share == share


def test_sources_are_judged_together():
    sources = {"coco": SourceOutcome(60, 60, 90), "youtube_vis": SourceOutcome(40, 20, 500)}
    assert PairOutcome("run", "finished", 80, {}, sources).refused_share == pytest.approx(0.2)
