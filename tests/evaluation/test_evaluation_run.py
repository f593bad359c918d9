"""An evaluation of the embedded model with few steps: real catalog runs, real scores, on Ray."""

import re
import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ezigen.adapters import adapter_fingerprint
from ezigen.config import BenchmarkConfig, ClusterConfig, ConfigurationError, ModelConfig, SamplerConfig
from ezigen.config.sampler import LoopConfig
from ezigen.images import decode_picture, encode_png
from ezigen.metrics import Measurer, Shown, load_scorer
from ezigen.mini.recipe.judge import Bench
from ezigen.mini.truth import Truth, judge_file, judge_scores
from ezigen.models import model_fingerprint
from tasks.evaluation import read_benchmarks
from tasks.evaluation.external import read_external
from tasks.evaluation.paper import EDITING, ENCODERS, MODES, PEOPLE, PaperTable
from tasks.evaluation.plan import EncoderAdapter, Method, plan_evaluation
from tasks.evaluation.run import Hooks, run_evaluation
from tasks.evaluation.scoring import encoders_digest, make_shards, read_scores
from tasks.storage import OutputFolder

pytestmark = pytest.mark.slow

SAMPLER = SamplerConfig(num_steps=4, guidance_scale=1.0, split_ratio=0.5, loops=LoopConfig(stop="fixed", num_loops=1))
TABLE = PaperTable("small", "3", "Two modes", "generation", ("product", "clip_t", "dino", "tflop"), MODES.variants[:2])
EDITS = PaperTable("edits", "2", "Edits", "editing", ("dino_sub", "psnr"), EDITING.variants[:1])
UNET_FLOP = 5e11
NO_RAY = ClusterConfig(address="127.0.0.1:1")


class Evaluation:
    """What is evaluated, on four cases, in an output."""

    def __init__(self, benchmark_folder: Path, output: Path):
        config = BenchmarkConfig(
            kind="mini", folder_uri=str(benchmark_folder), num_subjects=2, num_prompts=2, num_runs=1
        )
        self.benchmarks = read_benchmarks(config, ["generation", "editing", "generation"])
        self.benchmark, self.edits = self.benchmarks
        self.output, self._folder = OutputFolder(str(output)), benchmark_folder

    def plan(self, tables=(TABLE, EDITS), images=None, name="other", encoders=None):
        prints = model_fingerprint("mini"), adapter_fingerprint("auto", "mini")
        method = Method("shipped", ModelConfig(), SAMPLER, *prints, 64, UNET_FLOP, encoders or {})
        found = read_external(name, str(images), [self.benchmark]) if images else {}
        others = {benchmark: [method] for benchmark, method in found.items()}
        return plan_evaluation(
            method, self.output, self.benchmarks, tables, allowed_roots=[str(self._folder)], others=others
        )

    def run(self, cluster=NO_RAY, images=None, **hooks):
        return run_evaluation(self.plan(images=images), self.output, cluster, Hooks(**hooks))

    @property
    def rows(self):
        return pq.read_table(self.output.path("shipped/images.parquet")).to_pylist()


@pytest.fixture(scope="module")
def cluster(ray_address):
    return ClusterConfig(address=ray_address, num_workers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def finished(folder, cluster):
    """An evaluation that came to its end, in `folder`/out, and its tables."""
    evaluation = Evaluation(folder / "benchmark", folder / "out")
    assert evaluation.plan().num_images == 12
    return evaluation, evaluation.run(cluster)


@pytest.fixture
def copy(finished, folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    return Evaluation(folder / "benchmark", tmp_path / "out")


def test_images_are_made_measured_and_tabled(finished):
    evaluation, (table, edits) = finished
    assert [row.title for row in table.rows] == ["text only", "full injection"]
    assert all((row.missing, row.means["dino"].count) == (0, 4) for row in table.rows)
    assert [(row.title, row.missing, row.means["psnr"].count) for row in edits.rows] == [("no loop", 0, 4)]
    suffixes = ("csv", "md", "tex")
    assert set(evaluation.output.list("shipped/tables")) == {f"{t}.{s}" for t in ("small", "edits") for s in suffixes}
    small, edited = (evaluation.output.read(f"shipped/tables/{name}.md").decode() for name in ("small", "edits"))
    assert small.startswith("## Table 3: Two modes, 4 images a line")
    assert evaluation.output.read("shipped/evaluation.md").decode() == f"{small}\n{edited}"
    page = evaluation.output.read("shipped/evaluation.html").decode()
    assert "All 12 images are measured." in page
    assert len(re.findall('<img src="data:image/webp', page)) == 16  # two measures, four cases, each with its subject
    with Image.open(evaluation.output.path("shipped/sheets/small.jpg")) as sheet:
        assert sheet.width > 3 * 144
        assert sheet.height > 4 * 144


def test_scores_are_those_of_the_measures_and_of_the_judge(finished):
    evaluation, (table, _) = finished
    rows, case = evaluation.rows, evaluation.benchmark.cases[2]
    assert [row["variant"] for row in rows] == ["text_only"] * 4 + ["full_injection"] * 4 + ["edit_once"] * 4
    assert [row["benchmark"] for row in rows] == ["mini-dreambench"] * 8 + ["mini-dreamedit"] * 4
    assert {"psnr", "dino_sub"} < set(dict(rows[-1]["scores"]))
    assert "product" not in dict(rows[-1]["scores"])  # the judge knows nothing of edits
    (row,) = (row for row in rows if (row["variant"], row["case_id"]) == ("full_injection", case.case_id))
    scorer = load_scorer(ModelConfig(device="cpu"))
    image = decode_picture(evaluation.output.read(row["image_uri"])).rgb
    subjects = tuple(decode_picture(Path(uri).read_bytes()) for uri in case.reference_uris)
    expected = Measurer(scorer.clip, scorer.dino).measure([Shown(image, case.prompt, subjects)])[0]
    expected |= judge_scores(Bench(judge_file()), image, Truth.of_benchmark(case.subject_id, case.prompt_id))
    assert dict(row["scores"]) == pytest.approx(expected, abs=1e-4)
    mean = sum(dict(row["scores"])["dino"] for row in rows[4:8]) / 4
    assert table.rows[1].means["dino"].mean == pytest.approx(mean, abs=1e-9)
    calls = sum(row["num_unet_calls"] for row in rows[4:8]) / 4
    assert calls >= SAMPLER.num_steps + 1
    assert table.rows[1].means["tflop"].mean == pytest.approx(calls * UNET_FLOP / 1e12)


def test_a_finished_evaluation_needs_no_ray(finished, copy):
    assert copy.plan().num_images == 0
    assert copy.run(NO_RAY) == finished[1]


def test_what_is_missing_or_damaged_is_measured_again_beside_another_method(finished, copy, cluster, tmp_path, caplog):
    rows = copy.rows
    (score_file,) = copy.output.list("scores")
    copy.output.filesystem.rm(copy.output.path(f"scores/{score_file}"))
    copy.output.filesystem.pipe_file(copy.output.path(rows[0]["image_uri"]), b"not a picture")
    others = OutputFolder(str(tmp_path / "others"))
    for case in copy.benchmark.cases[:3]:
        others.write(f"{case.case_id}.png", encode_png(Image.new("RGB", (64, 64), "green")))
    with caplog.at_level("WARNING"):
        table, edits = copy.run(cluster, images=tmp_path / "others")
    assert [(row.title, row.missing) for row in table.rows] == [("text only", 1), ("full injection", 0), ("other", 1)]
    assert rows[0]["case_id"] in caplog.text
    assert copy.rows[0]["error"].startswith("image_undecodable")
    assert [row["error"] for row in copy.rows[8:12]] == ["", "", "", "not made"]
    page = copy.output.read("shipped/evaluation.html").decode()
    assert "14 of 16 images are measured, 2 are missing." in page
    assert (table.rows[1].means, edits) == (finished[1][0].rows[1].means, finished[1][1])


def test_a_stopped_evaluation_keeps_what_it_has(folder, cluster, tmp_path):
    evaluation = Evaluation(folder / "benchmark", tmp_path / "out")
    stop, titles = threading.Event(), set()

    def told(title, progress):
        titles.add(title)
        if progress.done:
            stop.set()

    assert evaluation.run(cluster, on_progress=told, stop=stop) == ()
    assert titles == {"text only"}
    assert not evaluation.output.list("shipped/tables")
    assert 8 <= evaluation.plan().num_images < 12


def test_a_damaged_score_file_is_named(copy):
    name = min(copy.output.list("scores"))
    copy.output.write(f"scores/{name}", b"PAR1 and nothing")
    with pytest.raises(ConfigurationError, match=f"{name} is damaged"):
        copy.run(NO_RAY)


def test_a_table_of_another_kind_is_refused(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="table people is of people, but benchmark mini-dreambench is of gen"):
        Evaluation(folder / "benchmark", tmp_path / "out").plan([PEOPLE])


def test_a_line_of_another_subject_encoder_is_made_with_its_own_adapter(folder, tmp_path):
    evaluation, other = Evaluation(folder / "benchmark", tmp_path / "out"), ModelConfig(adapter="dino/adapter")
    (part,) = evaluation.plan([ENCODERS], encoders={"dino": EncoderAdapter(other, "f" * 64)}).parts
    assert [(one.variant.name, one.model) for one in part.variants] == [
        ("full_injection", ModelConfig()),
        ("encoder_dino", other),
    ]
    own, others = (set(one.keys.values()) for one in part.variants)
    assert len(own) == len(others) == 4
    assert not own & others  # another adapter makes other images


def test_another_method_must_not_be_called_as_one_of_our_lines(copy, tmp_path):
    case = copy.benchmark.cases[0]
    OutputFolder(str(tmp_path / "others")).write(f"{case.case_id}.png", encode_png(Image.new("RGB", (64, 64))))
    with pytest.raises(ConfigurationError, match="images text_only: this is the name of another line"):
        copy.plan(images=tmp_path / "others", name="text_only")


def test_encoders_that_are_not_there_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigurationError, match="hf download"):
        encoders_digest(ModelConfig(model=str(tmp_path)))


def test_no_jobs_are_no_shards(tmp_path):
    assert make_shards([]) == {}
    assert read_scores(OutputFolder(str(tmp_path))) == {}
