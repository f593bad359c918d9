"""The page of a training run: lines that say what the numbers say, in a real browser, and as a picture."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.reports.lines import Line, draw_charts, line_chart, single, thin, to_png
from tasks.reports.training import MeasuredStep, Sheet, StepLog, TrainingRun, loss_charts, render_training
from tasks.storage.run_record import RunRecord, RunSummary
from tests.reports.browser import CHROMIUM, Browser

RECORD = RunRecord(
    run_id="20261124T040000Z-abcdef",
    state="stopped",
    started_at="2026-11-24T04:00:00+00:00",
    finished_at="2026-11-24T05:00:00+00:00",
    flow="train_adapter",
    config={"batch_size": 32, "optimizer": {"kind": "adamw", "lr": 1e-4}},
    counts={"steps": 600},
    measurements={"samples_per_s": 123.4},
    history=(RunSummary("first", "failed", "2026-11-24T03:00:00+00:00", None, {"steps": 10}, 600.0),),
)


def jpeg(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(data, "JPEG")
    return data.getvalue()


def make_run(num_done: int = 600, num_steps: int = 1000, **changes) -> TrainingRun:
    steps = np.arange(1, num_done + 1)
    loss = 0.1 + 0.2 * np.exp(-steps / 100) + 0.01 * np.random.default_rng(0).standard_normal(num_done)
    videos = np.where(steps % 3 == 0, np.nan, loss + 0.05)
    by_source = {"coco": loss, "youtube_vis": videos}
    log = StepLog(steps, loss, np.full(num_done, 0.5), np.full(num_done, 1e-4), 32 * num_done, by_source)
    measured = tuple(
        MeasuredStep(step, 0.3 - step / 4000, None, 0.5 + step / 2000) for step in range(200, num_done + 1, 200)
    )
    sheets = tuple(Sheet(m.step, jpeg((m.step % 256, 20, 90))) for m in measured)
    values = {"measured": measured, "sheets": sheets, "published": "toy@v3", **changes}
    return TrainingRun("toy-<b>0123</b>", num_steps, log, **values)


# ---- lines


def test_long_logs_become_means_with_a_band():
    values = np.tile([1.0, 3.0, np.nan], 1000)
    points = thin(np.arange(1, 3001), values, max_points=100)
    assert len(points) <= 100
    assert all(point.value == 2.0 and (point.low, point.high) == (1.0, 3.0) for point in points[:-1])
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert (points[0].step, points[-1].step) == pytest.approx((15, 2986), abs=16)


def test_short_logs_are_shown_as_they_are():
    points = thin(np.array([1, 2, 3]), np.array([0.5, np.inf, 0.25]))
    assert [(p.step, p.value, p.low, p.high) for p in points] == [(1, 0.5, 0.5, 0.5), (3, 0.25, 0.25, 0.25)]
    assert thin(np.array([], np.int64), np.array([])) == []


def test_axes_enclose_what_is_shown_with_round_numbers():
    chart = line_chart("x", "X", "", "", [Line("x", tuple(single([(10, 0.231), (70, 0.262)])))], last_step=100)
    assert chart is not None
    assert (chart.bottom, chart.top) == pytest.approx((0.23, 0.27))
    assert [tick.label for tick in chart.y_ticks] == ["0.23", "0.24", "0.25", "0.26", "0.27"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert chart.path(chart.lines[0]) == [pytest.approx((0.1, 0.025)), pytest.approx((0.7, 0.8))]
    assert chart.band(chart.lines[0]) == []


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1.0, 1.0], [1e-5, 3e-5], [2e5]])
def test_any_range_has_an_axis(values):
    points = tuple(single(list(enumerate(values, start=1))))
    chart = line_chart("x", "X", "", "", [Line("x", points)], last_step=0)
    assert chart is not None
    places = [chart.y(value) for value in values]  # which would be moved to an edge that is too near
    assert [chart.bottom + place * (chart.top - chart.bottom) for place in places] == pytest.approx(values)
    assert len({tick.label for tick in chart.y_ticks}) == len(chart.y_ticks) >= 2


def test_one_step_far_above_all_others_does_not_flatten_the_rest():
    values = np.full(10_000, 0.1)
    values[17] = 900.0
    chart = line_chart("x", "X", "", "", [Line("x", tuple(thin(np.arange(10_000), values)))], last_step=10_000)
    assert chart is not None
    assert chart.top < 100  # the mean of its stretch, not itself


def test_readouts_cover_the_axis_and_name_every_line():
    lines = [Line("a", tuple(single([(10, 1.0), (50, 2.0)]))), Line("b", tuple(single([(50, 4.0)])))]
    chart = line_chart("x", "X", "", "", lines, last_step=100)
    assert chart is not None
    readouts = list(chart.readouts())
    assert [(r.start, r.width) for r in readouts] == [pytest.approx((0.0, 0.3)), pytest.approx((0.3, 0.7))]
    assert [r.texts for r in readouts] == [("a 1.00",), ("a 2.00", "b 4.00")]


def test_charts_are_pictures_of_the_lines():
    picture = draw_charts(loss_charts(make_run()))
    assert picture.size == (2 * 380, 250)  # CLIP-T was not measured
    blue = np.asarray(picture)[44:, :380].astype(int)  # below the title and the names of lines
    inked = (blue[..., 2] - blue[..., 0] > 60).any(axis=0)
    columns = np.flatnonzero(inked[60:362]) + 60
    # 600 of 1,000 steps: the line ends at three fifths of the plot's width.
    assert columns.max() == pytest.approx(56 + 0.6 * (380 - 18 - 56), abs=6)
    assert len(to_png(picture)) < 40_000


# ---- the page


def test_the_page_is_the_same_for_the_same_run_and_escapes_names():
    page = render_training(make_run(), RECORD)
    assert page == render_training(make_run(), RECORD)
    assert "<b>0123" not in page
    assert "toy-&lt;b&gt;0123" in page
    assert "600 of 1,000 steps are done." in page
    assert "Published as toy@v3." in page
    assert "Configuration: optimizer" in page


def test_a_run_without_a_step_has_a_page():
    page = render_training(make_run(0, measured=(), sheets=(), published=""), None)
    assert "No step is done yet." in page
    assert "Samples" not in page.partition("<main>")[2].partition("Settings")[0]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_in_a_browser(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(render_training(make_run(), RECORD))
    shown = "[...document.querySelectorAll('[data-sheet]')].filter(i => !i.hidden).map(i => i.dataset.sheet)"
    with Browser(tmp_path / "profile") as browser:
        browser.open(path)
        assert browser.requests == [path.as_uri()]
        assert browser.run(shown) == ["600"]
        browser.run("document.querySelector('#sheet-step').focus()")
        browser.press("ArrowLeft")
        browser.wait_for(f"{shown}[0] === '400'")
        assert browser.run("document.querySelector('#sheet-said').textContent") == "step 400"
        # A chart tells its values to the keyboard, and its curve is drawn within its frame.
        browser.run("document.querySelector('#chart-dino .plot-bars').focus()")
        browser.press("ArrowRight")
        assert browser.run("document.querySelector('#chart-dino [data-note]').textContent") == (
            "step 200: Identity 0.600"
        )
        inside = """[...document.querySelectorAll('.curve')].every(c => {
          const a = c.getBoundingClientRect(), b = c.closest('.plot-bars').getBoundingClientRect();
          return a.width > 10 && a.left >= b.left - 3 && a.right <= b.right + 3 && a.top >= b.top - 3; })"""
        assert browser.run(inside)
        browser.open(path, width=390, height=800, phone=True)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.errors == []
