"""The flow in this process, against a real server: states, artifacts, logs, names."""

import base64
import functools
import io
import logging
import signal
import threading
import time
from itertools import pairwise

import httpx
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Failed

import flows.personalize_catalog as personalization
import tasks.catalog.run
from ezigen.config import CatalogInputs, ClusterConfig, ConfigurationError, ErrorCode
from ezigen.mini import catalog_file
from flows import endings, publishing, stages
from flows.catalog_job import CatalogSummary, UnfinishedRun
from flows.personalize_catalog import personalize_catalog
from flows.progress import RunProgress
from flows.publishing import PROGRESS_INTERVAL_S, ProgressPublisher, link_to
from flows.run_options import RunOptions
from flows.storage_block import EzigenS3, load_storage_options
from flows.watching import current_watcher
from tasks.catalog.outcome import RunOutcome
from tasks.cluster.connection import ClusterLost
from tasks.storage import Locations, RunOutput
from tasks.storage.lease import Lease, LeaseHeld, LeaseLost
from tests.run.catalogs import assert_complete, assert_stored_once, image_hashes, resolved_rows, write_catalog
from tests.run.light import LightWorker, SlowWorker

CLUSTER = ClusterConfig(num_workers=1, num_slots=2, flush_interval_s=0.5)
GONE = "ftp://shop.invalid/cup.png"


@pytest.fixture
def cluster(ray_address: str) -> ClusterConfig:
    return CLUSTER.model_copy(update={"address": ray_address})


def use_workers(monkeypatch: pytest.MonkeyPatch, worker: type[LightWorker]) -> None:
    run = functools.partial(tasks.catalog.run.run_catalog, worker=worker)
    monkeypatch.setattr(tasks.catalog.run, "run_catalog", run)


@pytest.fixture
def light_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_workers(monkeypatch, LightWorker)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_config: ClusterConfig) -> None:
        raise AssertionError("Ray is not needed here")

    monkeypatch.setattr(tasks.catalog.run, "connect", refuse)


def run_flow(catalog, output, cluster=CLUSTER, **options):
    """The final state, and the summary or the exception behind it."""
    inputs = CatalogInputs(catalog_uri=str(catalog), output_uri=str(output), **options)
    state = personalize_catalog(inputs, cluster=cluster, return_state=True)
    return state, state.result(raise_on_failure=False)


def artifacts_of(flow_run_id):
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        return {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=chosen)}


def links_in(markdown):
    """Targets of the links of a page, and whether each is what the page shows (in percent-encoding)."""
    parser = MarkdownIt("commonmark")
    parser.validateLink, parser.normalizeLinkText = (lambda _url: True), (lambda url: url)
    tokens = [token for block in parser.parse(markdown) for token in block.children or ()]
    links = [(link.attrs["href"], text.content) for link, text in pairwise(tokens) if link.type == "link_open"]
    return {target: target == shown for target, shown in links}


def logs_of(flow_run_id):
    APILogWorker.drain_all(timeout=10)
    with get_client(sync_client=True) as client:
        return client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])), limit=200)


class Follower:
    def __init__(self):
        self.plans, self.moments = [], []

    def planned(self, plan):
        self.plans.append(plan)

    def progressed(self, progress):
        self.moments.append(progress)


def test_a_run_shows_its_state_counts_pictures_and_logs(tmp_path, reporting_here, light_workers, cluster):
    catalog = write_catalog(tmp_path / "shop", 6, subject_uri={4: "missing.png", 5: GONE}, prompt={0: "an [odd] cup"})
    follower = Follower()
    token = current_watcher.set(follower)
    try:
        state, summary = run_flow(catalog, tmp_path / "tonight", cluster, max_failed_share=0.5)
    finally:
        current_watcher.reset(token)

    assert state.is_completed()
    assert state.message == summary.describe() == "3 done, 3 failed"
    assert_complete(tmp_path / "tonight", 6, failed={"item-0", "item-4", "item-5"})
    assert (tmp_path / "tonight" / "report.html").is_file()
    assert follower.plans == ["6 rows: 5 to do, 0 done before, 1 refused"]
    assert follower.moments[-1].done == 3

    flow_run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(flow_run_id).name == "tonight"
    shown = artifacts_of(flow_run_id)
    assert shown["catalog-progress"].data == 100.0
    assert shown["catalog-progress"].description.startswith("3 of 6 done, 3 failed")
    counts = shown["catalog-counts"].data
    assert all(text in counts for text in ('"done"', "image_missing", "location_unknown_scheme", "generation_failed"))
    page = shown["catalog-report"].data
    assert links_in(page) == {(tmp_path / "tonight" / "report.html").as_uri(): True}
    assert "image_missing" in page
    picture = Image.open(io.BytesIO(base64.b64decode(page.split("data:image/jpeg;base64,")[1].split(")")[0])))
    assert picture.width > 400

    names = {log.name for log in logs_of(flow_run_id)}
    messages = [log.message for log in logs_of(flow_run_id)]
    assert {"tasks.catalog.run", "ezigen.worker", "flows.stages"} <= names
    assert any("6 rows: 5 to do" in message for message in messages)


def test_the_sample_catalog_is_done_but_for_its_wrong_rows_and_then_there_is_nothing_to_do(
    tmp_path, reporting_here, ray_address
):
    """What `make demo` runs, with the real model, in two denoising steps and one loop for the shipped preset's many."""
    output = tmp_path / "demo"
    few = ["sampler.loops.min_loops=0", "sampler.loops.max_loops=1"]
    given = {"catalog": str(catalog_file()), "output": str(output), "address": ray_address}
    parameters = vars(RunOptions(**given, steps=2, workers=1, assignments=few).parameters())
    state = personalize_catalog(**parameters, return_state=True)
    assert state.is_completed()
    assert state.message == "36 done, 4 failed"
    rows = resolved_rows(output)
    assert {name: row.error_code for name, row in rows.items() if row.status == "failed"} == {
        "wrong-missing-file": ErrorCode.IMAGE_MISSING,
        "wrong-truncated-jpeg": ErrorCode.IMAGE_UNDECODABLE,
        "wrong-text-as-png": ErrorCode.IMAGE_UNDECODABLE,
        "wrong-unknown-scheme": ErrorCode.LOCATION_UNKNOWN_SCHEME,
    }
    assert_stored_once(output)
    assert len(set(image_hashes(output).values())) == 36
    assert all({"clip_t", "dino"} <= row.scores.keys() for row in rows.values() if row.status == "done")

    kept = results_and_images(output)
    again = personalize_catalog(**parameters, return_state=True)
    assert again.is_completed()
    assert again.message == "nothing to do: 36 done, 4 failed before"
    assert results_and_images(output) == kept


def results_and_images(output):
    """Every file of them by its name: when it was written, and its bytes."""
    files = [path for folder in ("results", "images") for path in (output / folder).rglob("*") if path.is_file()]
    return {path.relative_to(output): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/srv/shop [new]/a_b*c`d<e>.html", "file:///srv/shop%20%5Bnew%5D/a_b%2Ac%60d%3Ce%3E.html"),
        ("file:///srv/report.html", "file:///srv/report.html"),
        ("s3://shop/to night/report.html", "s3://shop/to%20night/report.html"),
    ],
)
def test_a_location_is_a_link_that_shows_where_it_leads(location, target):
    assert links_in(f"Report: {link_to(location)}") == {target: True}


def test_progress_is_sent_at_most_every_three_seconds(tmp_path, reporting_here, cluster, monkeypatch):
    sent, send, follower = [], publishing.update_progress_artifact, Follower()

    def count(*arguments):
        sent.append((time.monotonic(), arguments[1]))
        return send(*arguments)

    monkeypatch.setattr(publishing, "update_progress_artifact", count)
    use_workers(monkeypatch, SlowWorker)
    token = current_watcher.set(follower)
    try:
        state, _ = run_flow(write_catalog(tmp_path / "shop", 20), tmp_path / "out", cluster)
    finally:
        current_watcher.reset(token)
    assert state.message == "20 done, 0 failed"
    assert len(follower.moments) > 2 * len(sent)
    *timed, _last = [moment for moment, _ in sent]
    assert len(timed) >= 2
    assert all(later - earlier >= PROGRESS_INTERVAL_S for earlier, later in pairwise(timed))
    assert PROGRESS_INTERVAL_S == 3.0
    percents = [percent for _, percent in sent]
    assert percents == sorted(percents)
    assert percents[-1] == 100.0
    assert any(0 < percent < 100 for percent in percents)


def test_a_finished_run_does_nothing_and_needs_no_ray(tmp_path, reporting_here, light_workers, no_ray):
    catalog = write_catalog(tmp_path / "shop", 2, subject_uri={0: GONE, 1: GONE})
    first, _ = run_flow(catalog, tmp_path / "out", max_failed_share=1.0)
    again, summary = run_flow(catalog, tmp_path / "out", max_failed_share=0.0)
    assert first.message == "0 done, 2 failed"
    assert again.is_completed()
    assert again.message == "nothing to do: 0 done, 2 failed before"
    assert summary.outcome.nothing_to_do


def test_too_many_failures_fail_the_run_after_its_report(tmp_path, reporting_here, no_ray):
    catalog = write_catalog(tmp_path / "shop", 2, subject_uri={0: GONE, 1: GONE})
    state, error = run_flow(catalog, tmp_path / "out")
    assert state.is_failed()
    assert "2 of 2 items failed" in state.message
    assert isinstance(error, UnfinishedRun)
    assert error.summary.outcome.failed == 2
    assert (tmp_path / "out" / "report.html").is_file()
    assert "catalog-counts" in artifacts_of(state.state_details.flow_run_id)


def test_a_wrong_catalog_fails_at_once_and_is_not_tried_again(tmp_path, reporting_here):
    state, error = run_flow(tmp_path / "absent.csv", tmp_path / "out")
    assert state.is_failed()
    assert isinstance(error, ConfigurationError)
    assert "absent.csv" in state.message
    assert not (tmp_path / "out" / "run.json").exists()


def test_an_output_in_use_is_refused_or_waited_for(tmp_path, reporting_here, no_ray):
    catalog = write_catalog(tmp_path / "shop", 1, subject_uri={0: GONE})
    holder = Lease(RunOutput(str(tmp_path / "out")), "somebody else")
    with holder:
        state, error = run_flow(catalog, tmp_path / "out")
        assert state.is_failed()
        assert isinstance(error, LeaseHeld)
        assert "somebody else" in str(error)
        release = threading.Timer(1.0, holder.release)
        release.start()
        state, _ = run_flow(catalog, tmp_path / "out", if_busy="wait", max_failed_share=1.0)
    assert state.message == "0 done, 1 failed"


def test_a_storage_block_gives_the_keys_and_nothing_else_shows_them(
    tmp_path, reporting_here, no_ray, s3_server, s3_folder, monkeypatch
):
    options = s3_server.storage_options
    EzigenS3(
        endpoint_url=options["endpoint_url"],
        region=options.get("region", ""),
        access_key_id=options["key"],
        secret_access_key=options["secret"],
    ).save("shop", overwrite=True)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    loaded = load_storage_options("ezigen-s3/shop")
    assert loaded == load_storage_options("shop")
    assert loaded.items() <= options.items()

    output = RunOutput(f"{s3_folder}/out", Locations(storage_options=loaded))
    catalog = write_catalog(tmp_path / "shop", 1, subject_uri={0: GONE}).read_bytes()
    output.filesystem.pipe_file(f"{s3_folder.removeprefix('s3://')}/catalog.csv", catalog)
    state, _ = run_flow(f"{s3_folder}/catalog.csv", f"{s3_folder}/out", max_failed_share=1.0, storage_block="shop")
    assert state.message == "0 done, 1 failed"
    written = output.read("run.json") + output.read("report.html")
    assert options["secret"].encode() not in written
    with get_client(sync_client=True) as client:
        assert options["secret"] not in client.read_flow_run(state.state_details.flow_run_id).model_dump_json()
    assert all(options["secret"] not in log.message for log in logs_of(state.state_details.flow_run_id))


def test_a_missing_block_says_how_to_make_one(reporting_here):
    with pytest.raises(ConfigurationError, match=r"no block ezigen-s3/nowhere.*prefect block register"):
        load_storage_options("nowhere")


def test_loggers_are_as_before_after_a_run(tmp_path, reporting_here, no_ray):
    before = {
        name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in ("tasks", "ezigen")
    }
    run_flow(write_catalog(tmp_path / "shop", 1, subject_uri={0: GONE}), tmp_path / "out")
    after = {
        name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in ("tasks", "ezigen")
    }
    assert before == after


def test_a_lost_cluster_is_tried_again_with_a_new_plan(tmp_path, reporting_here, no_ray, monkeypatch):
    original, plans = tasks.catalog.run.run_catalog, []

    def lose_ray_once(plan, output, **options):
        plans.append(plan)
        if len(plans) == 1:
            raise ClusterLost("Ray's process raylet has died")
        return original(plan, output, **options)

    monkeypatch.setattr(tasks.catalog.run, "run_catalog", lose_ray_once)
    quick = personalization.generate_images.with_options(retry_delay_seconds=0)
    monkeypatch.setattr(personalization, "generate_images", quick)
    catalog = write_catalog(tmp_path / "shop", 1, subject_uri={0: GONE})
    state, _ = run_flow(catalog, tmp_path / "out", max_failed_share=1.0)
    assert state.message == "0 done, 1 failed"
    assert len(plans) == 2
    assert plans[0] is not plans[1]


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (ClusterLost("gone"), True),
        (OSError("the store is away"), True),
        (ConfigurationError("wrong"), False),
        (LeaseLost("gone"), False),
    ],
)
def test_trying_again_is_for_what_may_pass(error, helps):
    assert stages.may_pass(None, None, Failed(data=error)) is helps


def make_summary(**changes):
    outcome = RunOutcome("run", "stopped" if "stopped_by" in changes else "finished", total=9, done=5, failed=1)
    return CatalogSummary(outcome, done_before=0, failed_before=0, postponed=0, **changes)


def test_the_end_in_prefects_words(monkeypatch):
    completed = endings.to_state(make_summary())
    assert (completed.type, completed.message) == (StateType.COMPLETED, "5 done, 1 failed")
    failed = endings.to_state(make_summary(failure="too many"))
    assert (failed.type, failed.message) == (StateType.FAILED, "too many")
    interrupted = endings.to_state(make_summary(stopped_by=signal.SIGINT))
    assert interrupted.type is StateType.CANCELLED
    assert interrupted.message == "stopped by SIGINT: 5 done, 1 failed, 3 left; run again to continue"
    for asked, expected in ((True, StateType.CANCELLED), (False, StateType.CRASHED)):
        monkeypatch.setattr(endings, "was_cancelled", lambda _number, asked=asked: asked)
        assert endings.to_state(make_summary(stopped_by=signal.SIGTERM)).type is expected


@pytest.mark.filterwarnings("ignore:Artifact creation outside:FutureWarning")
def test_a_server_that_is_away_costs_a_warning_and_no_time(caplog):
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with (
        temporary_settings(away),
        caplog.at_level(logging.WARNING),
        ProgressPublisher("test", interval_s=0.01) as publisher,
    ):
        publisher.show(RunProgress("images", total=2, done=1, ended=1, rate_per_s=1.0, eta_s=1.0))
    assert "progress cannot be shown" in caplog.text


@pytest.mark.filterwarnings("ignore:Artifact creation outside:FutureWarning")
def test_progress_that_cannot_be_sent_does_not_end_the_run(reporting_here, caplog, monkeypatch):
    def fail(*_arguments):
        raise httpx.ConnectError("the server is away")

    monkeypatch.setattr(publishing, "update_progress_artifact", fail)
    with caplog.at_level(logging.WARNING), ProgressPublisher("test", interval_s=0.01) as publisher:
        publisher.show(RunProgress("images", total=2, done=1, ended=1, rate_per_s=1.0, eta_s=1.0))
    assert "progress could not be sent: the server is away" in caplog.text
