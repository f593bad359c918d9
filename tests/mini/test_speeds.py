"""Quality against cost: what the table and the chart say of measured variants."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from ezigen.config import balanced, embedded
from ezigen.mini.speeds import REFERENCE, Measured, Row, authors, summarize, to_chart, to_markdown, variants

DOCS = Path(__file__).parent.parent.parent / "docs"


def measured(gflop, dino, **changes):
    """Of four images, two of each of two products."""
    scores = tuple({"dino": d, "product": 1.0, "clip_t": 0.7, "scene_margin": 9.0} for d in dino)
    fields = {"gflop": gflop, "seconds": 1.0, "num_unet_calls": 100.0, "num_loops": 3.0}
    return Measured(**{**fields, "scores": scores, "products": ("cup", "cup", "hat", "hat"), **changes})


@pytest.fixture
def table():
    return summarize(
        {
            REFERENCE: measured(200.0, [0.5, 0.7, 0.6, 0.8]),
            "balanced": measured(100.0, [0.6, 0.8, 0.7, 0.9]),
            "draft": measured(20.0, [0.5, 0.7, 0.5, 0.7]),
        }
    )


def test_differences_are_paired_and_their_intervals_are_over_products(table):
    assert table[REFERENCE].mean["dino"][0] == pytest.approx(0.65)
    # Every image gained the same: however products are drawn, the difference stays.
    assert table["balanced"].difference["dino"] == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = table["draft"].difference["dino"]
    assert mean == pytest.approx(-0.05)
    assert (low, high) == pytest.approx((-0.1, 0.0))
    assert table["draft"].difference["clip_t"] == pytest.approx((0.0, 0.0, 0.0))


def test_the_table_has_a_line_per_variant_the_dearest_first(table):
    lines = to_markdown(table).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [REFERENCE, "balanced", "draft"]
    assert "| 100 | 2.00x |" in lines[3]
    assert "+0.100 [+0.100, +0.100]" in lines[3]
    assert len({line.count("|") for line in lines}) == 1


def test_the_chart_is_svg_with_every_variant_inside_its_frame(table):
    root = ET.fromstring(to_chart(table))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    shown = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {REFERENCE, "balanced", "draft", "200", "100", "20"} <= set(shown)
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 6
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height


def test_the_variants_are_the_presets_and_each_saving_alone():
    made = variants()
    assert made["balanced"].sampler == balanced(embedded())
    assert made[REFERENCE].sampler == embedded()
    assert authors().num_wasted_calls == 100
    samplers = [(variant.sampler, variant.dtype) for variant in made.values()]
    assert all(samplers.count(one) == 1 for one in samplers)


def test_the_figures_in_the_docs_are_those_of_the_measurement():
    figures = json.loads((DOCS / "speed-figures.json").read_text())
    assert set(figures["variants"]) == set(variants())
    table = {
        name: Row(**{k: {m: tuple(v) for m, v in x.items()} if isinstance(x, dict) else x for k, x in row.items()})
        for name, row in figures["variants"].items()
    }
    text = (DOCS / "performance.md").read_text()
    assert to_markdown(table) in text
    assert to_chart(table) == (DOCS / "images" / "quality-cost.svg").read_text()
    # What the default promises: cheaper than exact by half, and no difference that these images show.
    row = table["balanced"]
    assert table["authors"].gflop / row.gflop > 4
    assert all(low <= 0 <= high for _, low, high in row.difference.values())
    assert np.isfinite(row.seconds)
