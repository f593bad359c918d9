"""Figures counted in batches equal figures counted by hand."""

from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezigen.config import ErrorCode
from tasks.catalog.results import to_batch
from tasks.reports.charts import loops_chart, score_charts, seconds_chart, stop_shares, throughput_chart
from tasks.reports.figures import Figures, SparseBins, count_rows
from tests.reports.rows import RUN_ID, START, make_row, make_rows


@pytest.fixture(scope="module")
def rows():
    return [*make_rows(300, num_failed=20, paint=None), make_row(900, run_id="later", at_s=5000, paint=None)]


@pytest.fixture(scope="module")
def figures(rows) -> Figures:
    return count_rows(to_batch(rows[start : start + 7]) for start in range(0, len(rows), 7))


def test_figures_equal_those_counted_by_hand(rows, figures):
    done = [row for row in rows if row.status == "done"]
    assert (figures.num_done, figures.num_failed) == (len(done), 20)
    assert figures.failed_by_code == Counter(row.error_code for row in rows if row.error_code)
    assert figures.loops == Counter(row.num_loops for row in done)
    assert figures.stop_reasons == Counter(row.stop_reason for row in done)
    assert figures.mean_loops == pytest.approx(np.mean([row.num_loops for row in done]))
    assert figures.mean_seconds == pytest.approx(np.mean([row.seconds for row in done]))
    assert figures.mean_unet_calls == pytest.approx(np.mean([row.num_unet_calls for row in done]))
    for name in ("clip_t", "dino"):
        assert figures.mean_scores[name] == pytest.approx(np.mean([row.scores[name] for row in done]))


def test_runs_are_told_apart(rows, figures):
    assert set(figures.runs) == {RUN_ID, "later"}
    assert figures.runs[RUN_ID].num_rows == 300
    assert figures.runs["later"].first_at == (START + timedelta(seconds=5000)).timestamp()


def test_figures_of_no_rows_say_nothing():
    figures = count_rows([to_batch([])])
    assert figures.num_items == 0
    assert (figures.mean_seconds, figures.mean_loops, figures.mean_unet_calls) == (None, None, None)
    assert (loops_chart(figures), seconds_chart(figures), throughput_chart(None)) == (None, None, None)
    assert score_charts(figures) == stop_shares(figures) == []


def test_a_score_that_is_missing_or_not_a_number_is_not_counted():
    rows = [make_row(i, paint=None) for i in range(3)]
    rows = [
        type(row)(**{**vars(row), "scores": scores})
        for row, scores in zip(rows, [{"dino": 0.5}, {"dino": None}, {"dino": float("nan")}], strict=True)
    ]
    assert count_rows([to_batch(rows)]).mean_scores == {"dino": 0.5}


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), max_size=200), st.integers(2, 20), st.randoms())
def test_bins_depend_neither_on_order_nor_on_division(values, max_bins, chance):
    whole, parts = SparseBins(0.5, max_bins), SparseBins(0.5, max_bins)
    whole.add(np.array(values))
    chance.shuffle(values)
    for value in values:
        parts.add(np.array([value]))
    assert (whole.width, whole.items()) == (parts.width, parts.items())
    assert len(whole.items()) <= max_bins
    assert whole.total == len(values)


def test_quantiles_are_right_to_within_a_bin():
    values = np.random.default_rng(3).lognormal(1.0, 0.5, 5000)
    bins = SparseBins(1 / 1024)
    bins.add(values)
    for share in (0.05, 0.5, 0.95, 0.99):
        assert bins.quantile(share) == pytest.approx(np.quantile(values, share), abs=2 * bins.width)


def test_charts_show_every_row_once(rows, figures):
    done = [row for row in rows if row.status == "done"]
    loops = loops_chart(figures)
    assert {bar.label: bar.values[0] for bar in loops.bars if bar.values[0]} == {
        f"{loops} loops": count for loops, count in figures.loops.items()
    }
    for chart in score_charts(figures):
        assert sum(bar.values[0] for bar in chart.bars) == len(done)
    seconds = seconds_chart(figures)
    shown = sum(bar.values[0] for bar in seconds.bars)
    assert len(done) * 0.98 <= shown <= len(done)
    assert sum(share.count for share in stop_shares(figures)) == len(done)


def test_throughput_is_a_rate_and_counts_images_and_failures(figures):
    run = figures.runs[RUN_ID]
    chart = throughput_chart(run)
    width_s = (run.last_at - run.first_at) / (len(chart.bars) - 1)
    images = sum(bar.values[0] for bar in chart.bars) / 60 * width_s
    assert chart.y_title == "items per minute"
    assert images == pytest.approx(run.num_done, rel=0.08)
    texts = [bar.texts for bar in chart.bars]
    assert sum(int(text.split()[0]) for text, _ in texts) == run.num_done
    assert sum(int(text.split()[0]) for _, text in texts) == run.num_failed


@pytest.mark.parametrize("span_s", [0, 1, 59, 3600, 86_400, 40 * 86_400])
def test_throughput_of_short_and_long_runs_has_a_readable_axis(span_s):
    rows = [make_row(i, at_s=i * span_s / 49, paint=None) for i in range(50)]
    chart = throughput_chart(count_rows([to_batch(rows)]).runs[RUN_ID])
    assert 1 <= len(chart.bars) <= 49
    assert 1 <= len(chart.x_ticks) <= 7
    assert all(0 <= tick.at <= 1 for tick in (*chart.x_ticks, *chart.y_ticks))
    assert sum(int(bar.texts[0].split()[0]) for bar in chart.bars) == 50


def test_the_axis_reaches_above_the_highest_column(figures):
    for chart in (loops_chart(figures), seconds_chart(figures), *score_charts(figures)):
        assert max(sum(bar.values) for bar in chart.bars) <= chart.y_top
        assert chart.y_ticks[-1].at == 1
        for bar in chart.bars:
            assert all(0 <= part.bottom < part.top <= 1 for part in chart.stack(bar))


def test_failed_rows_do_not_count_as_work(figures):
    only_failed = count_rows([to_batch([make_row(1, failed=ErrorCode.TIMED_OUT)])])
    assert only_failed.mean_seconds is None
    assert only_failed.seconds.total == 0
