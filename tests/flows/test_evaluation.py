"""evaluate_adapter: the shipped adapter on a few cases of its world, with a real server, on Ray."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect.client.schemas.objects import State

from ezigen.config import (
    BaselineConfig,
    BenchmarkConfig,
    ClusterConfig,
    ConfigurationError,
    EvaluationConfig,
    EvaluationInputs,
    StackConfig,
)
from ezigen.mini import weights_folder
from flows.evaluate_adapter import evaluate_adapter
from flows.evaluation_job import EvaluationSummary, folder_name
from flows.evaluation_options import EvaluationOptions
from tasks.adapters import Registry
from tasks.storage import OutputFolder
from tests.flows.test_training_flow import latest_artifacts, pictures_in

FEW = BenchmarkConfig(kind="mini-dreambench", num_subjects=1, num_prompts=2, num_runs=1)
NO_RAY = ClusterConfig(address="127.0.0.1:1")


def evaluate(root: Path, cluster: ClusterConfig, model: str = "mini", **settings) -> State[Any]:
    inputs = EvaluationInputs(
        adapter="shipped@latest",
        adapters_uri=str(root / "adapters"),
        output_uri=str(root / "evaluation"),
        encoders=settings.pop("encoders", {}),
    )
    wanted = EvaluationConfig(**{"benchmark": FEW, "num_steps": 3, **settings})
    return evaluate_adapter(inputs, StackConfig(model=model, device="cpu"), wanted, cluster, return_state=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    registry = Registry(str(tmp_path / "adapters"))
    folder = OutputFolder(str(weights_folder() / "adapter"))
    registry.publish("shipped", folder, alias="latest", metrics={"dino": 0.25})
    return tmp_path


def test_a_version_is_made_and_measured_once(root: Path, reporting_here, ray_address):
    state = evaluate(root, ClusterConfig(address=ray_address, num_workers=1))
    assert state.is_completed(), state.message
    summary = state.result()
    assert isinstance(summary, EvaluationSummary)
    assert state.message.startswith("shipped@v1, 2 images of mini-dreambench: product right ")
    folder = root / "evaluation" / "shipped-v1"
    assert {path.name for path in (folder / "tables").iterdir()} == {"adapter.csv", "adapter.md", "adapter.tex"}
    rows = pq.read_table(folder / "images.parquet").to_pylist()
    assert [row["prompt_id"] for row in rows] == ["p00", "p01"]
    measured = {"product", "scene", "variant", "scene_margin", "clip_t", "clip_i", "dino", "dino_patch"}
    assert all(set(dict(row["scores"])) == measured for row in rows)
    (line,) = summary.tables[0].rows
    assert line.means["dino"].mean == pytest.approx(sum(dict(row["scores"])["dino"] for row in rows) / 2)

    shown = latest_artifacts()
    assert "product right" in shown["evaluation-figures"].data
    page = shown["evaluation-report"].data
    assert state.message in page
    assert (folder / "tables" / "adapter.md").read_text() in page
    (sheet,) = pictures_in(page)
    with Image.open(folder / "sheets" / "adapter.jpg") as kept:
        assert sheet.size == kept.size

    again = evaluate(root, NO_RAY)
    assert again.message == f"nothing to do: {state.message}"
    assert again.result().tables == summary.tables


def test_another_method_is_made_and_stands_beside_it(root: Path, reporting_here, ray_address):
    cluster = ClusterConfig(address=ray_address, num_workers=1)
    baselines = {"Text alone": BaselineConfig(pipeline="mini", num_steps=3)}
    state = evaluate(root, cluster, baselines=baselines)
    assert state.is_completed(), state.message
    assert state.message.startswith("shipped@v1, 4 images of mini-dreambench: ")
    summary = state.result()
    assert summary.num_made == 4
    assert [(row.title, row.missing) for row in summary.tables[0].rows] == [
        ("decoupled, no loop", 0),
        ("Text alone", 0),
    ]
    assert "Text alone" in latest_artifacts()["evaluation-figures"].data
    assert len(list((root / "evaluation" / "baselines").rglob("*.png"))) == 2
    assert evaluate(root, NO_RAY, baselines=baselines).message == f"nothing to do: {state.message}"


def test_where_the_world_says_nothing_the_last_measurement_of_training_is_told(root: Path, reporting_here, tiny_model):
    state = evaluate(root, NO_RAY, str(tiny_model))
    assert state.is_completed(), state.message
    assert state.message == "shipped@v1, as training measured it last: DINO 0.250"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tables": ["editing"]}, "table editing is of editing, but benchmark mini-dreambench is of generation"),
        (
            {"benchmark": BenchmarkConfig(kind="own", folder_uri="/nowhere")},
            "/nowhere",
        ),
        ({"tables": ["encoders"]}, "give one of dino, clip, as in `--encoder dino=ADAPTER`"),
        (
            {"encoders": {"clip": "shipped@latest"}},
            "inputs.encoders clip: adapter shipped@latest was trained with subject encoder frozen",
        ),
        (
            {
                "benchmark": BenchmarkConfig(kind="mini-dreamedit", num_subjects=1),
                "tables": ["editing"],
                "baselines": {"SD": BaselineConfig(pipeline="mini")},
            },
            "baselines SD: mini-dreamedit is a benchmark of editing",
        ),
        ({"baselines": {"SD": BaselineConfig(pipeline="/nowhere")}}, "--baseline NAME="),
        (
            {
                "benchmark": BenchmarkConfig(kind="mini-dreamedit", num_subjects=1),
                "tables": ["editing"],
                "segmenter": "/nowhere",
            },
            "then pass --segmenter sam-vit-base",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_ray(root: Path, reporting_here, settings, message):
    state = evaluate(root, NO_RAY, **settings)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ConfigurationError)
    assert message in str(error)


def test_an_adapter_that_was_not_published_is_named(tmp_path: Path, reporting_here):
    state = evaluate(tmp_path, NO_RAY)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ConfigurationError)
    assert "shipped" in str(error)


# ---- the command line


def test_options_become_parameters():
    made = EvaluationOptions(
        "toys@v3",
        "s3://shop/evaluation",
        tables="modes, loops",
        benchmark="dreambench",
        folder="s3://shop/dreambench",
        runs=2,
        steps=20,
        encoder=["dino=toys-dino@v1"],
        segmenter="facebook/sam-vit-base",
        workers=3,
        assignments=["evaluation.benchmark.num_prompts=5"],
    ).parameters()
    assert made.evaluation.segmenter == "facebook/sam-vit-base"
    assert made.inputs.adapter == "toys@v3"
    assert made.evaluation.tables == ("modes", "loops")
    assert made.inputs.encoders == {"dino": "toys-dino@v1"}
    assert made.evaluation.benchmark == BenchmarkConfig(
        kind="dreambench", folder_uri="s3://shop/dreambench", num_runs=2, num_prompts=5
    )
    assert made.evaluation.sampler("some/model").num_steps == 20
    assert made.cluster.num_workers == 3


def test_without_options_a_few_cases_of_the_world_are_measured():
    made = EvaluationOptions("auto", "out").parameters()
    assert made.evaluation == EvaluationConfig()
    assert EvaluationOptions("auto", "out", runs=3).parameters().evaluation.benchmark.num_subjects == 4
    assert made.evaluation.sampler("mini").guidance_scale == 2.0
    assert made.evaluation.sampler("other").guidance_scale == 7.5


def test_baselines_are_named_with_their_files():
    made = EvaluationOptions(
        "toys@v3",
        "out",
        baseline=["Stable Diffusion 2.1=weights/sd21", "IP=weights/sd15, weights/ip-adapter"],
        assignments=["evaluation.baselines.IP.num_steps=30", "evaluation.margins.dino=0.01"],
    ).parameters()
    assert made.evaluation.baselines == {
        "Stable Diffusion 2.1": BaselineConfig(pipeline="weights/sd21"),
        "IP": BaselineConfig(pipeline="weights/sd15", ip_adapter="weights/ip-adapter", num_steps=30),
    }
    assert made.evaluation.margins == {"dino": 0.01, "clip_t": 0.02}


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (["weights"], "write NAME=PIPELINE or NAME=PIPELINE,IP_ADAPTER"),
        (["A=x", "A=y"], "each name once"),
        (["A=x,"], "write NAME=PIPELINE or NAME=PIPELINE,IP_ADAPTER"),
        (["A=,x"], "write NAME=PIPELINE or NAME=PIPELINE,IP_ADAPTER"),
    ],
)
def test_a_baseline_that_is_written_otherwise_is_refused(baseline, message):
    with pytest.raises(ConfigurationError, match=message):
        EvaluationOptions("auto", "out", baseline=baseline).parameters()


def test_a_setting_of_a_baseline_that_does_not_exist_is_told():
    with pytest.raises(ConfigurationError, match="has no field 'steps'; known fields: pipeline, "):
        EvaluationOptions("auto", "out", assignments=["evaluation.baselines.IP.steps=3"]).parameters()


@pytest.mark.parametrize(
    ("reference", "name"),
    [("toys@v3", "toys-v3"), ("auto", "auto"), ("s3://shop/adapters/x y/", "x-y"), ("/tmp/my.adapter", "my.adapter")],
)
def test_folders_are_named_by_what_is_evaluated(reference, name):
    assert folder_name(reference) == name


def test_a_reference_without_a_name_is_refused():
    with pytest.raises(ConfigurationError, match="names no folder"):
        folder_name("///")
