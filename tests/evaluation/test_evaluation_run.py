"""An evaluation of the embedded model with few steps: real catalog runs, real scores, on Ray."""

import re
import threading

import pyarrow.parquet as pq
import pytest

from ezigen.adapters import adapter_fingerprint
from ezigen.config import BenchmarkConfig, ClusterConfig, ConfigurationError, ModelConfig, SamplerConfig
from ezigen.config.sampler import LoopConfig
from ezigen.images import decode_picture
from ezigen.metrics import Measurer, Shown, load_scorer
from ezigen.models import model_fingerprint
from tasks.evaluation import read_benchmark
from tasks.evaluation.paper import EDITING, MODES, PaperTable
from tasks.evaluation.run import Hooks, Method, plan_evaluation, run_evaluation
from tasks.evaluation.scoring import encoders_digest, make_shards, read_scores
from tasks.storage import Locations, OutputFolder

pytestmark = pytest.mark.slow

SAMPLER = SamplerConfig(num_steps=4, guidance_scale=1.0, split_ratio=0.5, loops=LoopConfig(stop="fixed", num_loops=1))
TABLE = PaperTable(
    "small", "3", "Two modes", "generation", ("clip_t", "dino"), MODES.variants[:2], MODES.claims[:0], MODES.others
)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    config = BenchmarkConfig(kind="mini-dreambench", folder_uri=str(folder), num_subjects=2, num_prompts=2, num_runs=1)
    return folder, read_benchmark(config)


@pytest.fixture
def evaluation(benchmark, tmp_path, ray_address):
    folder, cases = benchmark
    output, cluster = OutputFolder(str(tmp_path / "out")), ClusterConfig(address=ray_address, num_workers=1)

    def plan(tables=(TABLE,)):
        prints = model_fingerprint("mini"), adapter_fingerprint("auto", "mini")
        method = Method("shipped", ModelConfig(), SAMPLER, *prints, image_size_px=64)
        return plan_evaluation(method, output, cases, tables, allowed_roots=[str(folder)])

    return output, plan, lambda hooks=None: run_evaluation(plan(), output, cluster, hooks)


def test_images_are_made_measured_and_tabled_once(evaluation, benchmark, monkeypatch):
    output, plan, run = evaluation
    assert plan().num_images == 8
    (table,) = run()
    assert [row.title for row in table.rows] == ["text only", "full injection"]
    assert all((row.missing, row.means["dino"].count) == (0, 4) for row in table.rows)
    assert set(output.list("shipped/tables")) == {"small.csv", "small.md", "small.tex"}
    assert output.read("shipped/tables/small.md").decode().startswith("## Table 3: Two modes, 4 images a line")

    page = output.read("shipped/evaluation.html").decode()
    assert "All 8 images are measured." in page
    assert len(re.findall('<img src="data:image/webp', page)) == 16  # two measures, four cases, each with its subject

    rows = pq.read_table(output.path("shipped/images.parquet")).to_pylist()
    assert [row["variant"] for row in rows] == ["text_only"] * 4 + ["full_injection"] * 4
    case = benchmark[1].cases[2]
    (row,) = (row for row in rows if (row["variant"], row["case_id"]) == ("full_injection", case.case_id))
    scorer = load_scorer(ModelConfig(device="cpu"))
    picture = decode_picture(Locations().read_bytes(output.uri(row["image_uri"])))
    subjects = tuple(decode_picture(Locations().read_bytes(uri)) for uri in case.reference_uris)
    expected = Measurer(scorer.clip, scorer.dino).measure([Shown(picture.rgb, case.prompt, subjects)])[0]
    assert dict(row["scores"]) == pytest.approx(expected, abs=1e-4)
    assert table.rows[1].means["dino"].mean == pytest.approx(
        sum(dict(row["scores"])["dino"] for row in rows[4:]) / 4, abs=1e-9
    )

    monkeypatch.setattr("tasks.evaluation.run.connect", None)  # nothing is left to do that takes a Ray
    assert plan().num_images == 0
    assert run() == (table,)


def test_a_stopped_evaluation_goes_on_where_it_ended(evaluation):
    output, plan, run = evaluation
    stop = threading.Event()
    titles = []

    def told(title, progress):
        titles.append(title)
        if progress.done:
            stop.set()

    assert run(Hooks(on_progress=told, stop=stop)) == ()
    assert set(titles) == {"text only"}
    assert not output.list("shipped/tables")
    assert 0 < plan().num_images < 8
    (table,) = run()
    assert [row.missing for row in table.rows] == [0, 0]


def test_an_image_that_cannot_be_read_is_missing_and_named(evaluation, caplog):
    output, _, run = evaluation
    run()
    rows = pq.read_table(output.path("shipped/images.parquet")).to_pylist()
    (score_file,) = output.list("scores")
    output.filesystem.rm(output.path(f"scores/{score_file}"))
    output.filesystem.pipe_file(output.path(rows[0]["image_uri"]), b"not a picture")
    with caplog.at_level("WARNING"):
        (table,) = run()
    assert [row.missing for row in table.rows] == [1, 0]
    assert rows[0]["case_id"] in caplog.text
    again = pq.read_table(output.path("shipped/images.parquet")).to_pylist()
    assert again[0]["error"].startswith("image_undecodable")
    assert "7 of 8 images are measured, 1 is missing." in output.read("shipped/evaluation.html").decode()


def test_a_damaged_score_file_is_named(evaluation):
    output, plan, run = evaluation
    run()
    (name,) = output.list("scores")
    output.write(f"scores/{name}", b"PAR1 and nothing")
    with pytest.raises(ConfigurationError, match=f"{name} is damaged"):
        run()
    assert plan().num_images == 0


def test_a_table_of_another_kind_is_refused(evaluation):
    _, plan, _ = evaluation
    with pytest.raises(ConfigurationError, match="table editing is of editing, but benchmark mini-dreambench"):
        plan((EDITING,))


def test_encoders_that_are_not_there_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigurationError, match="hf download"):
        encoders_digest(ModelConfig(model=str(tmp_path)))


def test_no_jobs_are_no_shards(tmp_path):
    assert make_shards([]) == {}
    assert read_scores(OutputFolder(str(tmp_path))) == {}
