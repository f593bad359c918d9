"""build_pairs and precompute_features in this process, with a real server and a real Ray: states, artifacts, logs."""

import base64
import io
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import flows.build_pairs as pair_building
import tasks.pairs.run
from ezigen.config import (
    ConfigurationError,
    FeatureConfig,
    FeatureInputs,
    PairConfig,
    PairInputs,
    RayConfig,
    StackConfig,
)
from flows.build_pairs import build_pairs
from flows.features_job import FeaturesSummary, format_bytes
from flows.job import UnfinishedRun
from flows.pairs_job import PairsSummary
from flows.precompute_features import precompute_features
from flows.storage_block import EzigenS3
from flows.watching import current_watcher
from tasks.cluster.connection import ClusterLost
from tasks.features.outcome import FeatureOutcome
from tasks.features.reader import FeatureStore
from tasks.pairs import PairOutcome, SourceOutcome
from tasks.storage import Locations, OutputFolder
from tasks.storage.lease import Lease, LeaseHeld
from tests.flows.test_flow import Follower, artifacts_of, logs_of
from tests.pairs_run.conftest import World, read_pairs, world

__all__ = ["world"]

CONFIG = PairConfig(seed=1, size_px=32, pairs_per_shard=8, coco={"min_area_px": 100})
WANTED = {"num_coco_pairs": 20, "num_youtube_vis_pairs": 12}
NO_RAY = RayConfig(address="127.0.0.1:9")
"""A run that needed Ray would fail."""


def run_pairs_flow(world: World, output: Path, cluster: RayConfig, config: PairConfig = CONFIG, **inputs):
    """The final state, and the summary or the exception behind it."""
    state = build_pairs(world.inputs(output, **(WANTED | inputs)), config, cluster, return_state=True)
    return state, state.result(raise_on_failure=False)


def run_features_flow(pairs: Path, store: Path, model: Path, cluster: RayConfig, **inputs):
    state = precompute_features(
        FeatureInputs(pairs_uri=str(pairs), output_uri=str(store), **inputs),
        StackConfig(model=str(model), device="cpu"),
        FeatureConfig(batch_size=4),
        cluster,
        return_state=True,
    )
    return state, state.result(raise_on_failure=False)


def embedded_picture(page: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(page.split("data:image/jpeg;base64,")[1].split(")", maxsplit=1)[0])))


@pytest.fixture
def follower():
    follower = Follower()
    token = current_watcher.set(follower)
    yield follower
    current_watcher.reset(token)


@pytest.fixture(scope="module")
def cluster(ray_address: str) -> RayConfig:
    return RayConfig(address=ray_address, num_workers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves pairs and a store for the others."""
    return tmp_path_factory.mktemp("training")


def test_pairs_are_built_and_shown(folder, world, cluster, reporting_here, follower):
    state, summary = run_pairs_flow(world, folder / "pairs", cluster)
    assert state.is_completed()
    assert state.message == summary.describe()
    assert state.message.startswith("32 pairs")
    assert read_pairs(folder / "pairs", ["pair_id"]).num_rows == 32
    assert (folder / "pairs" / "card.html").is_file()
    assert summary.card_uri == str(folder / "pairs" / "card.html")
    assert follower.plans[0].startswith("32 pairs wanted, ")
    assert "20 of COCO, 12 of YouTube-VIS; 4 of 4 shards to do" in follower.plans[0]
    assert (follower.moments[-1].unit, follower.moments[-1].done, follower.moments[-1].total) == ("pairs", 32, 32)

    shown = artifacts_of(state.state_details.flow_run_id)
    assert shown["pairs-progress"].data == 100.0
    assert shown["pairs-progress"].description.startswith("32 of 32 done")
    assert "built of COCO" in shown["pairs-counts"].data
    page = shown["pairs-card"].data
    assert str(folder / "pairs" / "card.html") in page
    assert embedded_picture(page).width > 700
    assert any("32 pairs wanted" in log.message for log in logs_of(state.state_details.flow_run_id))


def test_a_finished_set_needs_no_ray_and_keeps_its_card(folder, world, reporting_here):
    before = (folder / "pairs" / "card.html").read_bytes()
    state, summary = run_pairs_flow(world, folder / "pairs", NO_RAY)
    assert state.is_completed()
    assert state.message.startswith("nothing to do: 32 pairs")
    assert summary.outcome.shards_made == 0
    assert (folder / "pairs" / "card.html").read_bytes() == before


def test_features_are_computed_and_shown(folder, cluster, reporting_here, follower, tiny_model):
    state, summary = run_features_flow(folder / "pairs", folder / "store", tiny_model, cluster)
    assert state.is_completed(), state.message
    assert state.message == summary.describe()
    store = FeatureStore.open(str(folder / "store"))
    assert sum(len(batch) for batch in store.samples()) == 32
    assert f"{len(store)} subjects" in state.message
    assert follower.plans[0].startswith("32 pairs: ")
    assert "4 of 4 shards to do" in follower.plans[0]
    assert (follower.moments[-1].unit, follower.moments[-1].percent) == ("subjects", 100.0)

    shown = artifacts_of(state.state_details.flow_run_id)
    assert shown["features-progress"].data == 100.0
    assert all(table in shown["features-tables"].data for table in ("subjects", "latents", "texts", "samples"))
    assert embedded_picture(shown["features-sheet"].data).height > 300
    assert str(folder / "store" / "manifest.json") in shown["features-sheet"].data


def test_a_finished_store_needs_no_ray(folder, reporting_here, tiny_model):
    state, _ = run_features_flow(folder / "pairs", folder / "store", tiny_model, NO_RAY)
    assert state.is_completed(), state.message
    assert state.message.startswith("nothing to do: ")


def test_a_damaged_shard_is_found_and_made_again(folder, cluster, reporting_here, tiny_model):
    shard = sorted((folder / "store" / "subjects").iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:])
    state, summary = run_features_flow(folder / "pairs", folder / "store", tiny_model, cluster, verify=True)
    assert state.is_completed(), state.message
    assert (summary.outcome.shards_made, summary.outcome.shards_repaired) == (1, 1)
    assert shard.read_bytes() == whole


def test_a_store_above_the_budget_is_refused_before_it_is_written(folder, tmp_path, reporting_here, tiny_model):
    state, error = run_features_flow(folder / "pairs", tmp_path / "store", tiny_model, NO_RAY, max_gib=1e-6)
    assert state.is_failed()
    assert isinstance(error, ConfigurationError)
    assert "inputs.max_gib" in state.message
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["lease.json"]


def test_other_settings_are_refused_and_not_tried_again(folder, world, reporting_here):
    other = CONFIG.model_copy(update={"seed": 2})
    state, error = run_pairs_flow(world, folder / "pairs", NO_RAY, other)
    assert state.is_failed()
    assert isinstance(error, ConfigurationError)
    assert "pairs.seed" in state.message


def test_an_output_in_use_is_refused(tmp_path, folder, world, reporting_here, tiny_model):
    for output in (tmp_path / "pairs", tmp_path / "store"):
        with Lease(OutputFolder(str(output)), "somebody else"):
            if output.name == "pairs":
                state, error = run_pairs_flow(world, output, NO_RAY)
            else:
                state, error = run_features_flow(folder / "pairs", output, tiny_model, NO_RAY)
        assert state.is_failed()
        assert isinstance(error, LeaseHeld)


def test_too_many_refusals_fail_the_run_after_its_card(tmp_path, world, cluster, reporting_here):
    strict = CONFIG.model_copy(update={"youtube_vis": CONFIG.youtube_vis.model_copy(update={"min_mask_share": 0.04})})
    state, error = run_pairs_flow(
        world, tmp_path / "pairs", cluster, strict, num_youtube_vis_pairs=10**5, max_refused_share=0.001
    )
    assert state.is_failed()
    assert isinstance(error, UnfinishedRun)
    assert "max_refused_share" in state.message
    assert error.summary.outcome.refused["mask_too_small"] > 0
    assert (tmp_path / "pairs" / "card.html").is_file()
    assert "refused: mask_too_small" in artifacts_of(state.state_details.flow_run_id)["pairs-counts"].data


def test_a_lost_cluster_is_tried_again_with_a_new_plan(folder, world, reporting_here, monkeypatch):
    original, plans = tasks.pairs.run.run_pairs, []

    def lose_ray_once(plan, output, **options):
        plans.append(plan)
        if len(plans) == 1:
            raise ClusterLost("Ray's process raylet has died")
        return original(plan, output, **options)

    monkeypatch.setattr(tasks.pairs.run, "run_pairs", lose_ray_once)
    monkeypatch.setattr(pair_building, "build_shards", pair_building.build_shards.with_options(retry_delay_seconds=0))
    state, _ = run_pairs_flow(world, folder / "pairs", NO_RAY)
    assert state.message.startswith("nothing to do: 32 pairs")
    assert len(plans) == 2
    assert plans[0] is not plans[1]


def test_both_flows_on_s3_with_the_keys_of_a_block(
    tmp_path, world, cluster, reporting_here, s3_server, s3_folder, tiny_model, monkeypatch
):
    options = s3_server.storage_options
    keys = {"access_key_id": options["key"], "secret_access_key": options["secret"]}
    EzigenS3(endpoint_url=options["endpoint_url"], region=options.get("region", ""), **keys).save(
        "data", overwrite=True
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    remote = OutputFolder(s3_folder, Locations(storage_options=options))
    for path in (path for path in world.coco.rglob("*") if path.is_file()):
        remote.write(f"coco/{path.relative_to(world.coco)}", path.read_bytes())

    inputs = PairInputs(
        output_uri=f"{s3_folder}/pairs", coco_uri=f"{s3_folder}/coco", num_coco_pairs=8, storage_block="data"
    )
    state = build_pairs(inputs, CONFIG, cluster, return_state=True)
    assert state.message.startswith("8 pairs"), state.message
    here, _ = run_pairs_flow(world, tmp_path / "pairs", cluster, youtube_vis_uri="", num_coco_pairs=8)
    assert here.message == state.message
    (name,) = remote.list("pairs/pairs")
    there = pq.read_table(pa.BufferReader(remote.read(f"pairs/pairs/{name}"))).drop_columns("target_uri")
    assert there.equals(read_pairs(tmp_path / "pairs").drop_columns("target_uri"))

    state, _ = run_features_flow(f"{s3_folder}/pairs", f"{s3_folder}/store", tiny_model, cluster, storage_block="data")
    assert state.is_completed(), state.message
    store = FeatureStore.open(f"{s3_folder}/store", remote.locations)
    assert store.read_subject(store.subject_ids()[0]).batch_size == 1
    assert embedded_picture(artifacts_of(state.state_details.flow_run_id)["features-sheet"].data).width > 400


# ---- the end in words


def pairs_summary(state: str = "finished", **changes) -> PairsSummary:
    sources = {"coco": SourceOutcome(wanted=10, built=changes.pop("built", 10), candidates=30)}
    built = sources["coco"].built
    outcome = PairOutcome("run", state, built, {"crowd": 1_234}, sources, shards_made=changes.pop("shards_made", 1))
    return PairsSummary(outcome=outcome, **changes)


def test_the_end_of_building_pairs_in_words():
    assert pairs_summary().describe() == "10 pairs, 1,234 refused"
    assert (
        pairs_summary(built=7).describe() == "7 pairs, 1,234 refused; 3 fewer than wanted, the data sets give no more"
    )
    assert pairs_summary(shards_made=0).describe() == "nothing to do: 10 pairs, 1,234 refused before"
    stopped = pairs_summary("stopped", built=1, stopped_by=signal.SIGTERM)
    assert stopped.stopped
    assert stopped.describe() == "1 pair, 1,234 refused, 9 left; run again to continue"


def test_the_end_of_computing_features_in_words():
    sizes = {"subjects": 2_310_000_000, "latents": 6_400}
    outcome = FeatureOutcome("run", "finished", 4, 3, 2, 1, sizes, shards_made=1)
    assert FeaturesSummary(outcome=outcome).describe() == "3 subjects, 2 targets, 1 text of 4 pairs, 2.31 GB"
    stopped = FeaturesSummary(outcome=FeatureOutcome("run", "stopped", 4, 3, 2, 1, sizes), shards_left=5, stopped_by=15)
    assert stopped.describe().endswith("2.31 GB; 5 shards left; run again to continue")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 bytes"), (999, "999 bytes"), (23.1e6, "23.1 MB"), (4.6e12, "4.60 TB")]
)
def test_bytes_as_people_read_them(num_bytes, text):
    assert format_bytes(num_bytes) == text
