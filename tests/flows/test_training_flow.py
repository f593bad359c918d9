"""train_adapter and run_pipeline: their options, and both flows in this process with a real server and a real Ray."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import ValidationError

from ezigen.config import (
    ConfigurationError,
    EvaluationConfig,
    EvaluationInputs,
    FeatureConfig,
    MonitoringConfig,
    PairConfig,
    PipelineInputs,
    StackConfig,
    TrainingClusterConfig,
    TrainingConfig,
    TrainingInputs,
    embedded_monitoring,
    recommended_training,
)
from ezigen.config.training import paper_training, released_training
from flows.job import UnfinishedRun
from flows.parameters import describe_invalid
from flows.pipeline_job import PipelineSummary, check_early
from flows.pipeline_options import PipelineOptions
from flows.run_pipeline import run_links, run_pipeline
from flows.train_adapter import train_adapter
from flows.training_job import TrainingSummary, to_run_progress
from flows.training_options import TrainingOptions
from flows.watching import current_watcher
from tasks.adapters import Registry
from tasks.training.outcome import TrainingOutcome, TrainingProgress
from tasks.training.plan import check_dtype
from tests.flows.test_flow import Follower, logs_of
from tests.flows.test_training_data import pairs_summary
from tests.pairs_run.conftest import World, world

__all__ = ["world"]

NUM_STEPS = 6
TRAINING: dict[str, Any] = {"num_steps": NUM_STEPS, "batch_size": 4, "held_out_share": 0.3, "optimizer": {"lr": 1e-3}}
MONITORING = MonitoringConfig(
    checkpoint_every=3,
    validate_every=3,
    num_loss_pairs=4,
    num_subjects=2,
    prompts=("a photo of a {subject_class}",),
    num_sampling_steps=2,
    split_ratio=0.5,
)
NO_RAY = TrainingClusterConfig(address="127.0.0.1:9")
"""A run that needed Ray would fail."""


# ---- options


def train_options(**options) -> TrainingOptions:
    return TrainingOptions(features="store", output="runs", **options)


def test_options_that_are_not_given_leave_the_recommended_preset():
    made = train_options().parameters()
    assert made.inputs == TrainingInputs(features_uri="store", output_uri="runs")
    assert made.training == recommended_training()
    assert made.monitoring == embedded_monitoring()
    assert made.cluster == TrainingClusterConfig()
    assert train_options(model="sd21").parameters().monitoring == MonitoringConfig()


def test_every_option_of_training_reaches_its_field():
    made = train_options(
        name="toys",
        adapters="s3://shop/adapters",
        alias="",
        pairs="pairs",
        wait=True,
        storage_block="shop",
        preset="released",
        steps=7,
        batch_size=3,
        lr=0.5,
        seed=4,
        initial="toys@v2",
        precision="bf16",
        checkpoint_every=11,
        validate_every=0,
        model="sd21",
        device="cpu",
        address="head:6379",
        workers=4,
        min_workers=2,
        accelerator="cpu",
        assignments=["training.optimizer.warmup_steps=9", 'monitoring.prompts=["a {subject_class}"]'],
    ).parameters()
    assert made.inputs == TrainingInputs(
        features_uri="store",
        output_uri="runs",
        adapters_uri="s3://shop/adapters",
        name="toys",
        alias="",
        pairs_uri="pairs",
        initial_adapter="toys@v2",
        if_busy="wait",
        storage_block="shop",
    )
    released = released_training()
    optimizer = released.optimizer.model_copy(update={"lr": 0.5, "warmup_steps": 9})
    changes = {"num_steps": 7, "batch_size": 3, "seed": 4, "precision": "bf16", "optimizer": optimizer}
    assert made.training == released.model_copy(update=changes)
    assert made.monitoring == MonitoringConfig(checkpoint_every=11, validate_every=0, prompts=("a {subject_class}",))
    assert made.model == StackConfig(model="sd21", device="cpu")
    assert made.cluster == TrainingClusterConfig(address="head:6379", num_workers=4, min_workers=2, accelerator="cpu")


def test_epochs_replace_steps_and_presets_stay_as_they_are_written():
    assert train_options(preset="paper").parameters().training == paper_training()
    made = train_options(epochs=2.5).parameters().training
    assert (made.num_steps, made.num_epochs) == (0, 2.5)
    with pytest.raises(ConfigurationError, match="recommended"):
        train_options(preset="fast").parameters()


def test_every_option_of_the_pipeline_reaches_its_stage():
    made = PipelineOptions(
        root="s3://shop/root/",
        coco="coco",
        youtube_vis="videos",
        num_coco=7,
        num_youtube_vis=8,
        name="toys",
        alias="stable",
        max_gib=2.0,
        wait=True,
        storage_block="shop",
        policy="latents",
        steps=5,
        initial="auto",
        workers=3,
        assignments=["pairs.seed=9", "features.t_sub=4", "monitoring.num_subjects=1", "evaluation.num_steps=7"],
    ).parameters()
    pairs, features, training = (
        made.inputs.pair_inputs(),
        made.inputs.feature_inputs(),
        made.inputs.training_inputs(),
    )
    assert (pairs.output_uri, pairs.coco_uri, pairs.youtube_vis_uri) == ("s3://shop/root/pairs", "coco", "videos")
    assert (pairs.num_coco_pairs, pairs.num_youtube_vis_pairs) == (7, 8)
    assert (features.pairs_uri, features.output_uri, features.max_gib) == (
        "s3://shop/root/pairs",
        "s3://shop/root/features",
        2.0,
    )
    assert (training.features_uri, training.pairs_uri) == ("s3://shop/root/features", "s3://shop/root/pairs")
    assert (training.output_uri, training.adapters_uri) == ("s3://shop/root/runs", "s3://shop/root/adapters")
    assert (training.name, training.alias, training.initial_adapter) == ("toys", "stable", "auto")
    assert {one.storage_block for one in (pairs, features, training)} == {"shop"}
    assert {one.if_busy for one in (pairs, features, training)} == {"wait"}
    assert (made.pairs.size_px, made.pairs.seed) == (64, 9)  # the embedded model's size
    assert made.features == FeatureConfig(policy="latents", t_sub=4)
    assert made.training.num_steps == 5
    assert made.monitoring == embedded_monitoring().model_copy(update={"num_subjects": 1})
    assert made.evaluation == EvaluationConfig(num_steps=7)
    assert made.inputs.evaluation_inputs("toys@v3") == EvaluationInputs(
        adapter="toys@v3",
        adapters_uri="s3://shop/root/adapters",
        output_uri="s3://shop/root/evaluation",
        if_busy="wait",
        storage_block="shop",
    )
    assert made.cluster.num_workers == 3


def test_pairs_of_another_size_than_the_models_are_refused_before_they_are_built(world: World):
    made = PipelineOptions(root="root", coco=str(world.coco), size=128).parameters()
    with pytest.raises(ConfigurationError, match=r"pairs\.size_px is 128, but model mini makes pictures of 64 px"):
        check_early(made)
    check_early(PipelineOptions(root="root", coco=str(world.coco)).parameters())


def test_mistakes_name_the_groups_of_training():
    with pytest.raises(
        ConfigurationError, match=r"groups inputs, model, training, monitoring, cluster, as in training"
    ):
        train_options(assignments=["sampler.num_steps=3"]).parameters()
    with pytest.raises(ValidationError) as caught:
        train_options(batch_size=0, lr=-1.0).parameters()
    fields = [line.partition(":")[0] for line in describe_invalid(caught.value)]
    assert fields == ["training.batch_size", "training.optimizer.lr"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["train", "docs", "OUT"], "no finished feature store"),
        (["train", "docs", "OUT", "--model", "nowhere/at/all"], "no such folder"),
        (["train", "docs", "OUT", "--name", "Two Words"], "inputs.name"),
        (["train", "docs", "OUT", "--set", "model.dtype=fp16"], "model.dtype is fp16"),
        (["train", "docs", "OUT", "--alias", "v3"], "inputs.alias: v3 is what versions are called"),
        (["plan", "train", "docs", "OUT"], "no feature store"),
        (["pipeline", "OUT"], "name at least one data set"),
        (["pipeline", "OUT", "--coco", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(tmp_path, ezigen, options, says):
    command = ezigen(*(tmp_path / "out" if option == "OUT" else option for option in options))
    assert command.returncode == 2, command.stdout + command.stderr
    assert says in command.stderr
    assert "Traceback" not in command.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dtype", "precision", "says"),
    [
        ("fp16", "auto", r"set model\.dtype to auto\.$"),
        ("fp16", "bf16", r"training\.precision \(bf16: auto, fp32 or bf16\); set model\.dtype to auto or bf16\.$"),
        ("bf16", "fp32", r"set model\.dtype to auto or fp32, or training\.precision to bf16\.$"),
        ("fp32", "auto", r"set model\.dtype to auto, or training\.precision to fp32\.$"),
    ],
)
def test_a_precision_that_training_would_not_compute_in_is_refused(dtype, precision, says):
    with pytest.raises(ConfigurationError, match=says):
        check_dtype(TrainingConfig(precision=precision), StackConfig(dtype=dtype))
    check_dtype(TrainingConfig(precision=precision), StackConfig())
    if precision != "auto":
        check_dtype(TrainingConfig(precision=precision), StackConfig(dtype=precision))


# ---- words


def outcome(state: str = "finished", **changes) -> TrainingOutcome:
    values = {"step": 1200, "num_steps": 1200, "steps_made": 1200, "loss": 0.0812, "seconds": 60.0, **changes}
    return TrainingOutcome("id", state, "toys-0123", "runs/toys-0123", **values)  # type: ignore[arg-type]


def test_the_end_of_training_in_words():
    published = {"published": "toys@v3", "alias": "latest"}
    done = TrainingSummary(outcome=outcome(), **published)
    assert done.describe() == "1,200 steps, loss 0.0812; published as toys@v3 (latest)"
    again = TrainingSummary(outcome=outcome(steps_made=0, seconds=0.0), **published)
    assert again.describe() == "nothing to do: 1,200 steps, loss 0.0812; published as toys@v3 (latest) before"
    stopped = TrainingSummary(outcome=outcome("stopped", step=400), stopped_by=15)
    assert stopped.stopped
    assert stopped.describe() == "400 of 1,200 steps done; run again to continue"


def test_progress_in_words():
    moment = TrainingProgress("measuring", 500, 1000, loss=0.0812, samples_per_s=64.0, eta_s=250.0)
    assert to_run_progress(moment, batch_size=32).describe() == (
        "500 of 1,000 done, 2.00 steps/s, 4 min 10 s left, loss 0.0812, 64.0 samples/s, measuring"
    )
    assert to_run_progress(TrainingProgress("starting", 0, 1000), 32).describe() == "0 of 1,000 done, starting workers"


# ---- the flows


@dataclass(frozen=True)
class Chain:
    """A pipeline on the small world and the tiny model."""

    root: Path
    world: World
    model: Path

    def run(self, cluster: TrainingClusterConfig) -> State[Any]:
        inputs = PipelineInputs(
            root_uri=str(self.root),
            coco_uri=str(self.world.coco),
            youtube_vis_uri=str(self.world.youtube_vis),
            num_coco_pairs=14,
            num_youtube_vis_pairs=6,
            name="toys",
        )
        return run_pipeline(
            inputs,
            StackConfig(model=str(self.model), device="cpu", dtype="fp32"),  # of the features
            PairConfig(seed=1, size_px=32, pairs_per_shard=10, coco={"min_area_px": 100}),
            FeatureConfig(batch_size=4),
            TrainingConfig(**TRAINING),
            MONITORING,
            EvaluationConfig(),
            cluster,
            return_state=True,
        )

    def train(self, cluster: TrainingClusterConfig, **training: Any) -> State[Any]:
        inputs = TrainingInputs(
            features_uri=f"{self.root}/features",
            output_uri=f"{self.root}/runs",
            adapters_uri=f"{self.root}/adapters",
            name="toys",
        )
        model = StackConfig(model=str(self.model), device="cpu")
        config = TrainingConfig(**{**TRAINING, **training})
        return train_adapter(inputs, model, config, MONITORING, cluster, return_state=True)

    @property
    def registry(self) -> Registry:
        return Registry(f"{self.root}/adapters")


@pytest.fixture(scope="module")
def chain(tmp_path_factory, world: World, tiny_model: Path) -> Chain:
    """What the first test leaves for the others."""
    return Chain(tmp_path_factory.mktemp("chain"), world, tiny_model)


@pytest.fixture(scope="module")
def cluster(ray_address: str) -> TrainingClusterConfig:
    return TrainingClusterConfig(address=ray_address, num_workers=1)


@pytest.fixture
def follower():
    follower = Follower()
    token = current_watcher.set(follower)
    yield follower
    current_watcher.reset(token)


def latest_artifacts() -> dict[str, Any]:
    """The newest artifact of every key, of all flow runs."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId()))
    return {artifact.key: artifact for artifact in sorted(found, key=lambda artifact: artifact.created)}


def pictures_in(page: str) -> list[Image.Image]:
    found = re.findall(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_the_chain_makes_measures_and_publishes_an_adapter(chain: Chain, cluster, reporting_here, follower):
    state = chain.run(cluster)
    assert state.is_completed(), state.message
    summary = state.result()
    assert isinstance(summary, PipelineSummary)
    assert [title for title, _ in summary.stages] == ["pairs", "features", "adapter", "evaluation"]
    trained, evaluated = (stage for _, stage in summary.stages[2:])
    assert "6 steps, loss " in trained.describe()
    assert trained.describe().endswith("published as toys@v1 (latest)")
    # The embedded model's world says nothing of this model, so the last measurement of training is shown.
    assert state.message == evaluated.describe()
    assert state.message.startswith("toys@v1, as training measured it last: held-out loss ")
    assert follower.plans[0].startswith("20 pairs wanted")
    assert follower.plans[1].startswith("20 pairs: ")
    assert follower.plans[2].startswith("6 steps of 4 samples (")
    assert (follower.moments[-1].unit, follower.moments[-1].percent) == ("steps", 100.0)

    adapter = chain.registry.resolve("toys@latest")
    assert adapter.version == "v1"
    assert adapter.card.metrics == trained.outcome.measurements[-1].numbers()
    assert adapter.card.training["steps"] == NUM_STEPS
    assert {"adapter.safetensors", "card.json", "sheet.jpg", "figures.png"} <= {
        path.name for path in Path(adapter.uri).iterdir()
    }
    (run,) = (chain.root / "runs").iterdir()
    assert "Published as toys@v1." in (run / "report.html").read_text()
    assert [m.step for m in trained.outcome.measurements] == [3, 6]

    shown = latest_artifacts()
    assert shown["training-progress"].data == 100.0
    assert "loss" in shown["training-progress"].description
    assert all(name in shown["training-measurements"].data for name in ("held-out loss", "DINO", '"step": 6'))
    page = shown["training-report"].data
    figures, sheet = pictures_in(page)
    assert figures.height == 250
    assert sheet.width > 400
    assert str(run / "report.html") in page
    assert adapter.uri in page
    assert state.message in shown["evaluation-report"].data
    assert any("6 steps of 4 samples" in log.message for log in logs_of(shown["training-report"].flow_run_id))


def test_a_finished_chain_needs_no_ray_and_publishes_nothing_new(chain: Chain, reporting_here):
    state = chain.run(NO_RAY)
    assert state.is_completed(), state.message
    summary = state.result()
    assert [one.describe().partition(":")[0] for _, one in summary.stages] == [
        *["nothing to do"] * 3,
        "toys@v1, as training measured it last",
    ]
    assert summary.stages[2][1].describe().endswith("published as toys@v1 (latest) before")
    assert chain.registry.versions("toys") == ("v1",)


def test_a_link_that_fails_ends_the_chain_and_says_which(chain: Chain, tmp_path, reporting_here):
    other = Chain(tmp_path, chain.world, chain.model)
    state = other.run(NO_RAY)
    assert state.is_failed()
    assert state.message.startswith("pairs: ")
    assert isinstance(state.result(raise_on_failure=False), ConfigurationError)
    assert not (tmp_path / "features").exists()


def test_a_link_that_ends_unfinished_ends_the_chain_with_what_it_did():
    wanted = PipelineOptions(root="root", coco="coco").parameters()
    failed = pairs_summary(failure="more than half of the candidates were refused")
    links = (
        ("pairs", lambda *_: Completed(data=pairs_summary())),
        ("features", lambda *_: Failed(data=UnfinishedRun("too many", failed))),
        ("adapter", lambda *_: pytest.fail("it was begun")),
    )
    state = run_links(wanted, links)
    assert state.is_failed()
    assert state.message == "features: more than half of the candidates were refused"
    error = state.result(raise_on_failure=False)
    assert isinstance(error, UnfinishedRun)
    assert [title for title, _ in error.summary.stages] == ["pairs", "features"]


def test_a_diverging_run_fails_with_its_step_and_publishes_nothing(chain: Chain, cluster, reporting_here):
    state = chain.train(cluster, max_loss=1e-9)
    assert state.is_failed()
    assert "diverged at step 1" in state.message
    assert "optimizer.lr" in state.message
    error = state.result(raise_on_failure=False)
    assert isinstance(error, UnfinishedRun)
    assert error.summary.failure
    assert not error.summary.published
    assert Path(error.summary.report_uri).is_file()
    assert chain.registry.versions("toys") == ("v1",)


def test_plan_train_says_what_is_done_and_writes_nothing(chain: Chain, ezigen):
    before = sorted(chain.root.rglob("*"))
    settings = ["training.num_steps=6", "training.batch_size=4", "training.held_out_share=0.3"]
    command = ezigen(
        *("plan", "train", chain.root / "features", chain.root / "runs", "--name", "toys", "--model", chain.model),
        *(option for setting in settings for option in ("--set", setting)),
    )
    assert command.returncode == 0, command.stderr
    lines = [" ".join(line.split()) for line in command.stdout.splitlines()]
    assert any(line.startswith(f"run {chain.root}/runs/toys-") for line in lines)
    assert "steps to do 6" in lines  # of the recommended preset, which has not been trained
    assert sorted(chain.root.rglob("*")) == before
