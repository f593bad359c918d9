import csv
import io
import re

import pytest

from tasks.evaluation.paper import DREAMBENCH, Claim, PaperTable, Published, Variant
from tasks.evaluation.printing import sentence, to_csv, to_latex, to_markdown
from tasks.evaluation.tables import ScoredImage, measure_table

TABLE = PaperTable(
    "two",
    "3 & 4",
    "Two_variants",
    "generation",
    ("dino", "clip_t", "face"),
    (Variant("high", "the | higher", published={"dino": 0.7}), Variant("low", "the lower")),
    (Claim("dino", "high", "low"),),
    (Published("another's", {"clip_t": 0.3}),),
)


def images(variant, level, subjects=3):
    return [ScoredImage(variant, f"s{n}/0", f"s{n}", "0", {"dino": level + 0.01 * n}) for n in range(subjects)]


@pytest.fixture
def measured():
    return measure_table(TABLE, images("high", 0.6) + images("low", 0.5, 2), num_cases=3)


def test_markdown_has_ours_with_intervals_the_published_and_a_sentence(measured):
    lines = to_markdown(measured).splitlines()
    assert lines[0] == "## Table 3 & 4: Two_variants, 3 images a line"
    assert lines[2] == "|  | DINO | CLIP-T | DINO, published | CLIP-T, published |"
    assert lines[4] == r"| the \| higher | 0.610 [0.600, 0.620] |  | 0.700 |  |"
    assert lines[5].startswith("| the lower (1 image missing) | 0.505 [")
    assert lines[6] == "| another's |  |  |  | 0.300 |"
    assert lines[8] == "- DINO, the | higher above the lower: +0.100 [+0.100, +0.100], agrees with the paper"


def test_csv_has_every_number_in_full(measured):
    rows = list(csv.DictReader(io.StringIO(to_csv(measured))))
    high = next(row for row in rows if row["row"] == "the | higher" and row["measure"] == "dino")
    assert float(high["mean"]) == pytest.approx(0.61)
    assert (high["images"], high["subjects"], high["missing"], high["published"]) == ("3", "3", "0", "0.7")
    assert next(row for row in rows if row["row"] == "another's")["published"] == "0.3"


def test_latex_escapes_what_latex_reads(measured):
    text = to_latex(measured)
    assert r"\caption{Table 3 \& 4: Two\_variants, 3 images a line}" in text
    body = re.search(r"\\midrule\n(.*)\\bottomrule", text, re.DOTALL)[1].splitlines()
    assert {line.count(" & ") for line in body} == {4}


def test_of_one_subject_no_interval_is_printed():
    found = measure_table(TABLE, images("high", 0.6, 1) + images("low", 0.5, 1), num_cases=1)
    assert "0.600 (one subject)" in to_markdown(found)
    assert sentence(found, found.trends[0]).endswith("undecided: the interval holds 0, so more subjects are needed")
    row = next(csv.DictReader(io.StringIO(to_csv(found))))
    assert (row["low"], row["high"]) == ("", "")


def test_published_rows_are_printed_although_nothing_was_measured():
    text = to_markdown(measure_table(DREAMBENCH, [], num_cases=0))
    assert "| Subject-Diffusion |  |  | 0.293 | 0.711 |" in text
