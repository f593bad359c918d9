"""Promotion by comparison: worse adapters are refused, equal and better ones are not, and nothing is taken on trust."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ezigen.config import ConfigurationError
from ezigen.mini import weights_folder
from flows.command_line import app
from flows.promotion import current_version, parse_margins, promote_if_no_worse
from tasks.adapters import Registry
from tasks.evaluation.comparison import compare_evaluations, read_evaluation
from tasks.evaluation.gate import compare_adapters
from tasks.evaluation.rows import IMAGES_SCHEMA
from tasks.storage import OutputFolder

MARGINS = {"dino": 0.02, "clip_t": 0.02}
FACTS = {"benchmark": "b", "encoders": "e", "model": "m", "sampler": "s"}


@pytest.fixture
def evaluations(tmp_path):
    return OutputFolder(str(tmp_path / "evaluations"))


def write(output, name, *, dino=0.0, clip_t=0.0, subjects=12, prompts=4, variant="decoupled", noise=0.0, **facts):
    """An evaluation whose scores differ from those of others by so much, beside other methods that are always equal."""
    rng = np.random.default_rng(len(name))
    rows = []
    for subject in range(subjects):
        for prompt in range(prompts):
            own = 0.5 + 0.2 * np.sin(subject) + noise * rng.normal()
            scores = [("dino", own + dino), ("clip_t", 0.3 + 0.01 * prompt + clip_t)]
            case = {
                "benchmark": "mine",
                "variant": variant,
                "case_id": f"s{subject}/p{prompt}",
                "subject_id": f"s{subject}",
            }
            rows.append({**case, "prompt_id": f"p{prompt}", "scores": scores, "error": ""})
    equal = [("dino", 0.5), ("clip_t", 0.3)]
    rows += [{**row, "variant": other, "scores": equal} for other in facts.get("others", ()) for row in tuple(rows)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA), sink)
    output.write(f"{name}/images.parquet", bytes(sink.getvalue()))
    known = {**FACTS, "others": [], **facts}
    mine = {"digest": known.pop("benchmark"), "encoders": known.pop("encoders"), "subset": ""}
    output.write(f"{name}/evaluation.json", json.dumps({**known, "benchmarks": {"mine": mine}}).encode())


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"dino": 0.1, "clip_t": 0.1}, True),
        ({"dino": -0.01}, True),
        ({"dino": -0.05}, False),
        ({"dino": 0.2, "clip_t": -0.05}, False),
    ],
    ids=["equal", "better", "within its margin", "other subjects", "other text"],
)
def test_only_a_fall_beyond_the_margin_is_refused(evaluations, changes, passed):
    write(evaluations, "toys-v1")
    write(evaluations, "toys-v2", **changes)
    found = compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS)
    assert found.passed is passed
    differences = {check.measure: check.difference.mean for check in found.checks}
    assert differences == pytest.approx({"dino": 0.0, "clip_t": 0.0} | changes, abs=1e-9)


def test_too_few_cases_show_nothing(evaluations):
    """The same fall within the margin, on one subject; and on few that scatter."""
    write(evaluations, "toys-v1", subjects=1)
    write(evaluations, "toys-v2", subjects=1, dino=-0.01)
    assert not compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS).passed
    write(evaluations, "toys-v10", subjects=3, noise=0.3)
    write(evaluations, "toys-v100", subjects=3, noise=0.3)
    assert not compare_adapters(evaluations, "toys-v100", "toys-v10", MARGINS).passed


def test_the_last_variant_that_both_have_is_compared(evaluations):
    write(evaluations, "toys-v1")
    write(evaluations, "toys-v2", variant="iterative")
    with pytest.raises(ConfigurationError, match="no variant in common"):
        compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS)
    write(evaluations, "toys-v1", variant="iterative")
    assert compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS).variant == "iterative"


def test_other_methods_are_not_what_is_compared(evaluations):
    """They equal themselves in both evaluations: compared, they would let any adapter pass."""
    write(evaluations, "toys-v1", others=["IP-Adapter"])
    write(evaluations, "toys-v2", dino=-0.2, others=["IP-Adapter"])
    found = compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS)
    assert found.variant == "decoupled"
    assert not found.passed


@pytest.mark.parametrize("field", list(FACTS))
def test_what_was_evaluated_otherwise_is_no_comparison(evaluations, field):
    write(evaluations, "toys-v1")
    write(evaluations, "toys-v2", **{field: "another"})
    with pytest.raises(ConfigurationError, match=f"another {field} than toys-v1"):
        compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS)


def test_a_missing_a_damaged_and_an_unmeasured_evaluation_are_told(evaluations):
    write(evaluations, "toys-v1")
    with pytest.raises(ConfigurationError, match=r"toys-v2: there is no finished evaluation; run `ezigen evaluate"):
        compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS)
    write(evaluations, "toys-v2")
    with pytest.raises(ConfigurationError, match="share no case with Face"):
        compare_adapters(evaluations, "toys-v2", "toys-v1", {"face": 0.1})
    evaluations.write("toys-v2/evaluation.json", b'{"benchmarks": {}, "model": "m", "sampler": "s"}')
    with pytest.raises(ConfigurationError, match="toys-v2 is damaged"):
        compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS)
    write(evaluations, "toys-v2")
    evaluations.write("toys-v2/images.parquet", b"PAR1")
    with pytest.raises(ConfigurationError, match="toys-v2 is damaged"):
        compare_adapters(evaluations, "toys-v2", "toys-v1", MARGINS)


# ---- comparison


def test_differences_are_told_by_measure_and_by_subject(registry, evaluations):
    write(evaluations, "toys-v1", subjects=12)
    write(evaluations, "toys-v2", variant="decoupled", subjects=12, dino=0.125)
    command = ["adapters", "compare", "toys@v2", "toys@v1", evaluations.root_uri, "--adapters", registry.uri]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    assert "decoupled, no loop, 48 images: toys@v2 - toys@v1" in text
    assert "DINO +0.125 [+0.125, +0.125] higher" in text
    assert "CLIP-T +0.000 [+0.000, +0.000] undecided" in text
    assert "DINO by subject, 10 of 12, the least gain first" in text

    write(evaluations, "toys-v1", subjects=12, variant="iterative")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "toys-v2 and toys-v1 have no variant in common" in " ".join(refused.output.split())


def test_the_subject_that_lost_most_is_the_first(evaluations):
    write(evaluations, "toys-v1", subjects=4)
    write(evaluations, "toys-v2", subjects=4, noise=0.3)
    (found,) = compare_evaluations(evaluations, "toys-v2", "toys-v1")
    old, new = (read_evaluation(evaluations, name).images for name in ("toys-v1", "toys-v2"))

    def mean(images, subject):
        return np.mean([image.scores["dino"] for image in images if image.subject_id == subject])

    expected = {f"s{n}": mean(new, f"s{n}") - mean(old, f"s{n}") for n in range(4)}
    by_subject = {name: interval.mean for name, interval in found.by_subject("dino").items()}
    assert by_subject == pytest.approx(expected)
    assert list(by_subject) == sorted(expected, key=expected.get)
    assert found.means(["dino", "face"])["dino"].mean == pytest.approx(np.mean(list(expected.values())))


# ---- promotion


@pytest.fixture
def registry(tmp_path):
    registry = Registry(str(tmp_path / "adapters"))
    folder = OutputFolder(str(weights_folder() / "adapter"))
    for run in ("one", "two"):
        registry.publish("toys", folder, run=run)
    return registry


def test_an_alias_moves_to_a_version_that_is_no_worse(registry, evaluations):
    first = promote_if_no_worse(registry, "toys@v1", "production", evaluations, MARGINS)
    assert first.describe() == "toys@v1 is toys@production now"
    assert promote_if_no_worse(registry, "toys@v1", "production", evaluations, MARGINS).describe().endswith("already")

    write(evaluations, "toys-v1")
    write(evaluations, "toys-v2", dino=-0.2)
    refused = promote_if_no_worse(registry, "toys@v2", "production", evaluations, MARGINS)
    assert refused.failure.startswith("toys@v2 does not become production, which stays toys@v1: ")
    assert "DINO -0.200 [-0.200, -0.200], may fall by 0.020: failed" in refused.failure
    assert current_version(registry, "toys", "production") == "toys@v1"

    write(evaluations, "toys-v2")
    moved = promote_if_no_worse(registry, "toys@v2", "production", evaluations, MARGINS)
    assert moved.describe() == "toys@v2 is toys@production now, which was toys@v1"
    assert current_version(registry, "toys", "production") == "toys@v2"


def test_the_command_refuses_by_its_exit_code(registry, evaluations):
    registry.promote("toys", "v1", "production")
    write(evaluations, "toys-v1")
    write(evaluations, "toys-v2", dino=-0.05)
    command = ["adapters", "promote", "toys@v2", "production", "--adapters", registry.uri]
    command += ["--evaluations", evaluations.root_uri]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "stays toys@v1" in " ".join(refused.output.split())
    allowed = CliRunner().invoke(app, [*command, "--margin", "dino=0.1"])
    assert allowed.exit_code == 0, allowed.output
    assert current_version(registry, "toys", "production") == "toys@v2"


@pytest.mark.parametrize("text", ["dino", "dino=", "=0.1", "dino=-1", "dino=nan", "dino=inf"])
def test_margins_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigurationError, match=re.escape(f"--margin {text!r}: write MEASURE=NUMBER")):
        parse_margins([text])
