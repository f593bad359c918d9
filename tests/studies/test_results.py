"""What answers add up to, and which ones are refused. The statistics are held against other ways to compute them."""

import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ezigen.config import ConfigurationError
from ezigen.metrics import mean_interval
from tasks.studies import read_results
from tasks.studies.agreement import fleiss_kappa

METHODS = ("ours", "theirs")
QUESTIONS = ("identity", "quality")
CASES = [f"case-{number:03d}" for number in range(1, 6)]


@pytest.fixture
def key(tmp_path) -> Path:
    cases = [
        {"case": case, "item": f"item {case}", "labels": {f"{case}o": "ours", f"{case}t": "theirs"}} for case in CASES
    ]
    values = {
        "format": "ezigen-study-key/1",
        "study": "5" * 32,
        "methods": {method: f"/somewhere/{method}" for method in METHODS},
        "questions": {name: f"Which {name}?" for name in QUESTIONS},
        "seed": 0,
        "made_at": "2026-11-22T03:12:05+00:00",
        "cases": cases,
    }
    path = tmp_path / "study.key.json"
    path.write_text(json.dumps(values))
    return path


def write_answers(folder: Path, rater: str, choices: dict[str, str], **changes) -> str:
    """choices: by question one letter per case: o, t, n for no difference, . for no answer."""
    answers = [
        {"case": case, "question": question, "choice": "none" if letter == "n" else case + letter, "seconds": 2.5}
        for question, letters in choices.items()
        for case, letter in zip(CASES, letters, strict=False)
        if letter != "."
    ]
    values = {"format": "ezigen-study-answers/1", "study": "5" * 32, "rater": rater, "answers": answers, **changes}
    path = folder / f"{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(values))
    return str(path)


def test_shares_missing_answers_and_agreement(key, tmp_path):
    files = [
        write_answers(tmp_path, "Ann", {"identity": "oootn", "quality": "ttttt"}),
        write_answers(tmp_path, "Ben", {"identity": "oootn", "quality": "tto.."}),
    ]
    results = read_results(str(key), files)
    shares = {(share.question, share.method): share.interval for share in results.shares}
    assert shares["identity", "ours"].mean == pytest.approx(0.6)
    assert shares["identity", None].mean == pytest.approx(0.2)
    assert (shares["quality", "theirs"].mean, shares["quality", "theirs"].count) == (pytest.approx(7 / 8), 8)
    for question in QUESTIONS:
        assert sum(shares[question, method].mean for method in (*METHODS, None)) == pytest.approx(1)
    assert (results.num_expected, dict(results.missing)) == (20, {"Ann": 0, "Ben": 2})
    assert results.agreement["identity"] == pytest.approx(1)
    # By hand: of the three cases with two raters, two agree; theirs has 5 of 6 choices, ours 1.
    by_chance = (5 / 6) ** 2 + (1 / 6) ** 2
    assert results.agreement["quality"] == pytest.approx((2 / 3 - by_chance) / (1 - by_chance))
    assert results.median_seconds == 2.5


def test_one_rater_agrees_with_nobody(key, tmp_path):
    results = read_results(str(key), [write_answers(tmp_path, "Ann", {"identity": "ooott"})])
    assert dict(results.agreement) == {"identity": None, "quality": None}
    assert [share.question for share in results.shares] == ["identity"] * 3
    assert results.num_missing == 5


def test_kappa_of_a_published_example():
    """Fleiss' kappa as worked out by hand on Wikipedia: 14 raters, 10 subjects, 5 categories, kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.20993, abs=1e-5)


def test_kappa_by_counting_pairs_of_raters():
    rng = np.random.default_rng(4)
    choices = rng.integers(0, 3, (30, 5))
    agree = np.mean([np.mean([a == b for a, b in itertools.combinations(row, 2)]) for row in choices])
    by_chance = sum(np.mean(choices == category) ** 2 for category in range(3))
    counts = [[int((row == category).sum()) for category in range(3)] for row in choices]
    assert fleiss_kappa(counts) == pytest.approx((agree - by_chance) / (1 - by_chance))
    assert fleiss_kappa([[3, 0], [3, 0]]) is None
    assert fleiss_kappa([[1, 0], [0, 1]]) is None


def test_intervals_draw_cases():
    """Against a plain bootstrap over the cases' lists, and wider than one that takes answers as independent."""
    rng = np.random.default_rng(1)
    by_case = [
        list((rng.random(size) < rate).astype(float)) for size, rate in zip([8] * 20, rng.random(20), strict=True)
    ]
    values = [value for case in by_case for value in case]
    clusters = [str(at) for at, case in enumerate(by_case) for _ in case]
    interval = mean_interval(values, clusters)
    means = [np.mean(np.concatenate([by_case[at] for at in rng.integers(0, 20, 20)])) for _ in range(4000)]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.02)
    alone = mean_interval(values, [str(at) for at in range(len(values))])
    assert interval.high - interval.low > 1.2 * (alone.high - alone.low)
    assert mean_interval(values, clusters) == interval
    with pytest.raises(ValueError, match="one cluster for each"):
        mean_interval([1.0], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": "6" * 32}, "answers another study"),
        ({"format": "something"}, "is not a file of answers"),
        ({"rater": " "}, "printable name"),
        ({"rater": "a\x1bb"}, "printable name"),
        ({"answers": [{"case": "case-9", "question": "quality", "choice": "none"}]}, "about 'case-9'"),
        ({"answers": [{"case": CASES[0], "question": "beauty", "choice": "none"}]}, "to 'beauty'"),
        ({"answers": [{"case": CASES[0], "question": "quality", "choice": "case-002o"}]}, "no label of case-001"),
        ({"answers": [{"case": CASES[0], "question": "quality", "choice": "none"}] * 2}, "is the second one"),
        ({"answers": [{"case": CASES[0]}]}, "missing required field `question`"),
        ({"answers": []}, "hold no answers"),
    ],
)
def test_wrong_answers_are_refused(key, tmp_path, changes, message):
    file = write_answers(tmp_path, **({"rater": "Ann", "choices": {}} | changes))
    with pytest.raises(ConfigurationError, match=message):
        read_results(str(key), [file])


def test_wrong_files_are_refused(key, tmp_path):
    ann = write_answers(tmp_path, "Ann", {"identity": "ooooo"})
    again = write_answers(tmp_path, " Ann ", {"identity": "ttttt"})
    for files in ([ann, ann], [ann, again]):
        with pytest.raises(ConfigurationError, match="both of the rater 'Ann'"):
            read_results(str(key), files)
    broken = tmp_path / "broken.json"
    broken.write_bytes(b'{"format": \xff')
    with pytest.raises(ConfigurationError, match=r"broken\.json is not a file of answers"):
        read_results(str(key), [str(broken)])
    with pytest.raises(ConfigurationError, match=r"none\.json cannot be read"):
        read_results(str(key), [str(tmp_path / "none.json")])
    with pytest.raises(ConfigurationError, match="is not the key of a study"):
        read_results(ann, [ann])


# ---- the command


@pytest.fixture
def ezigen():
    from typer.testing import CliRunner

    from flows.study_commands import study_app

    return lambda *arguments: CliRunner().invoke(study_app, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_csv_and_json(key, tmp_path, ezigen):
    files = [write_answers(tmp_path, name, {"identity": "oootn", "quality": "tt..."}) for name in ("Ann", "[b]Ben")]
    told = ezigen("results", key, *files)
    assert told.exit_code == 0, told.output
    assert "5 cases, 2 raters" in told.output
    assert "no difference" in told.output
    assert "6 of 20 answers missing: Ann 3, [b]Ben 3" in told.output
    table = list(csv.DictReader(io.StringIO(ezigen("results", key, *files, "--csv").stdout)))
    assert [row["method"] for row in table[:3]] == ["ours", "theirs", "no difference"]
    assert float(table[0]["share"]) == pytest.approx(0.6)
    values = json.loads(ezigen("results", key, *files, "--json").stdout)
    assert values["answers"]["missing"] == 6
    assert values["shares"][2]["method"] is None
    assert values["fleiss_kappa"]["identity"] == 1
    assert ezigen("results", key, *files, "--csv", "--json").exit_code == 2


def test_one_case_has_no_interval(key, tmp_path, ezigen):
    file = write_answers(tmp_path, "Ann", {"identity": "o"})
    assert "one case only" in ezigen("results", key, file).output
    assert json.loads(ezigen("results", key, file, "--json").stdout)["shares"][0]["low"] is None


def test_create_by_command(tmp_path, ezigen):
    from tests.studies.sets import write_folder

    sets = [f"{name}={write_folder(tmp_path / name, name, ['a', 'b'])}" for name in ("secretmethod", "otherbaseline")]
    page = tmp_path / "s.html"
    told = ezigen("create", page, "--set", sets[0], "--set", sets[1], "--question", "quality", "--cases", 1)
    assert told.exit_code == 0, told.output
    assert "1 case of 2 that all sets have" in told.output
    assert "(not for raters)" in told.output
    assert page.exists()
    assert (tmp_path / "s.key.json").exists()
    for wrong, message in (
        (("--set", sets[0]), "compares 2 to 9"),
        (("--set", sets[0], "--set", sets[0]), "is given twice"),
        (("--set", "nothing"), "write NAME=LOCATION"),
        (("--set", sets[0], "--set", sets[1], "--catalog", "c.csv", "--subjects", "f"), "keep one of them"),
    ):
        told = ezigen("create", tmp_path / "t.html", *wrong)
        assert told.exit_code == 2
        assert message in " ".join(told.output.split())
