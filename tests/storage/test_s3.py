"""The same storage on a real S3 server, and on one that misbehaves."""

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections import deque
from dataclasses import replace

import pytest

from ezigen.config import CatalogInputs, ConfigurationError, ErrorCode, ItemError, SamplerConfig
from tasks.catalog.plan import plan_catalog
from tasks.catalog.results import refused_row
from tasks.datasets.catalogs import read_catalog
from tasks.storage import Lease, Locations, ResultsLedger, RunOutput, RunRecord, locate
from tasks.storage import filesystems as filesystems_module
from tasks.storage.filesystems import StorageUnavailableError, open_filesystem
from tests.faulty_proxy import run_faulty_proxy
from tests.storage.lease_cases import LeaseCases, race_processes, read_holder

pytestmark = pytest.mark.slow

CATALOG = b"item_id,subject_uri,subject_class,prompt\na,p/x.png,mug,on a beach\nb,../y.png,mug,p\na,p/z.png,mug,p\n"


@pytest.fixture
def output(s3_folder):
    return RunOutput(f"{s3_folder}/out")


@pytest.fixture
def put(s3_folder):
    def put(name, data):
        location = locate(f"{s3_folder}/{name}")
        open_filesystem("s3").pipe_file(location.path, data)
        return location.uri

    return put


@pytest.fixture
def faulty(s3_server, monkeypatch):
    """A proxy in front of the server; trouble is tried again without pauses."""
    monkeypatch.setattr(filesystems_module, "RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    with run_faulty_proxy(s3_server.endpoint_url) as proxy:
        yield proxy


def code_of(action):
    with pytest.raises(ItemError) as raised:
        action()
    return raised.value.code


class TestLeaseOnS3(LeaseCases):
    def test_of_processes_that_race_one_wins(self, output):
        """For a new output, and for the hold of a process that was killed."""
        for _ in range(2):
            assert race_processes(output, num_processes=3) == 1
            assert not read_holder(output).released, "the winner ended without releasing it"


def test_an_output_that_may_not_be_written_is_named(s3_folder):
    locations = Locations(storage_options={"secret": "wrong"})
    with pytest.raises(ConfigurationError, match=f"output_uri {s3_folder}/out cannot be written"):
        Lease(RunOutput(f"{s3_folder}/out", locations), "us").acquire()


def test_objects_say_what_they_are(output):
    for name, kind in (("report.html", "text/html"), ("a.png", "image/png"), ("run.json", "application/json")):
        output.write(name, b"data")
        assert output.filesystem.info(output.path(name))["ContentType"] == kind


def test_an_output_on_s3(output, make_row):
    assert output.read_run() is None
    assert list(output.read_results()) == []
    rows = [make_row(1, preview=b"x"), make_row(2, status="failed")]
    uri = output.write_results("run", 0, rows)
    assert uri.startswith("s3://tests/")
    assert list(output.read_result_rows()) == rows
    image = output.write_image("ab" * 16, b"png")
    assert output.read(image.uri) == b"png"
    record = RunRecord("one", "running", "2026-01-01T00:00:00+00:00")
    output.write_run(record)
    assert output.read_run() == record


def test_another_process_sees_results_at_once(output, make_row):
    """A listing that was remembered would hide them."""
    assert output.list_results() == []
    code = "import pickle, sys; output, rows = pickle.load(sys.stdin.buffer); output.write_results('b', 0, rows)"
    subprocess.run([sys.executable, "-c", code], input=pickle.dumps((output, [make_row(1)])), check=True)
    assert [row.row_index for row in output.read_result_rows()] == [1]


def test_many_shards_are_read_in_order(output, make_row):
    for index in range(40):
        output.write_results("run", index, [make_row(index)])
    assert [row.row_index for row in output.read_result_rows()] == list(range(40))
    assert ResultsLedger(output).counts().done == 40


def test_a_large_shard_is_read_by_ranges(output, make_row, monkeypatch):
    monkeypatch.setattr("tasks.storage.shards.WHOLE_OBJECT_BYTES", 1000)
    rows = [make_row(n, preview=os.urandom(2000)) for n in range(300)]
    output.write_results("run", 0, rows)
    assert list(output.read_result_rows()) == rows
    assert ResultsLedger(output).counts().done == 300


def test_a_damaged_shard_is_named(output, make_row):
    output.write_results("run", 0, [make_row(1)])
    path = output.path("results/run-000000.parquet")
    output.filesystem.pipe_file(path, output.filesystem.cat_file(path)[:-20])
    with pytest.raises(ConfigurationError, match=r"s3://tests/.*run-000000\.parquet is not a readable"):
        list(output.read_results())


def test_a_plan_on_s3_has_the_keys_of_a_plan_on_disk(s3_folder, put, tmp_path):
    (tmp_path / "catalog.csv").write_bytes(CATALOG)
    catalog = put("catalog.csv", CATALOG)
    plans = [
        plan_catalog(CatalogInputs(catalog_uri=str(uri), output_uri=str(out)), SamplerConfig(), "m", "a")
        for uri, out in ((catalog, f"{s3_folder}/out"), (tmp_path / "catalog.csv", tmp_path / "out"))
    ]
    assert [item.item_key for item in plans[0].items()] == [item.item_key for item in plans[1].items()]
    keys = [[refusal.item_key for refusal in plan.refusals()] for plan in plans]
    assert keys[0] == keys[1]
    assert plans[0].counts.refused_by_code == {ErrorCode.DUPLICATE_ID: 1, ErrorCode.LOCATION_DENIED: 1}
    output = RunOutput(f"{s3_folder}/out")
    output.write_results("run", 0, [refused_row(refusal, run_id="run") for refusal in plans[0].refusals()])
    inputs = CatalogInputs(catalog_uri=catalog, output_uri=f"{s3_folder}/out")
    assert plan_catalog(inputs, SamplerConfig(), "m", "a").counts.failed_before == 2


def test_a_catalog_that_changes_is_noticed(s3_folder, put):
    inputs = CatalogInputs(catalog_uri=put("catalog.csv", CATALOG), output_uri=f"{s3_folder}/out")
    planned = plan_catalog(inputs, SamplerConfig(), "m", "a")
    put("catalog.csv", CATALOG.replace(b"beach", b"table"))
    with pytest.raises(ConfigurationError, match="changed"):
        next(planned.items())


def test_reading_pictures(s3_folder, put):
    put("p/x.png", b"data")
    put("p/empty.png", b"")
    put("secret.png", b"no")
    locations = Locations(allowed_roots=(f"{s3_folder}/p",), base_uri=f"{s3_folder}/p")
    assert locations.read_bytes("x.png") == b"data"
    assert locations.read_bytes(f"{s3_folder}/p/x.png") == b"data"
    assert locations.read_bytes("empty.png") == b""
    assert code_of(lambda: locations.read_bytes("none.png")) is ErrorCode.IMAGE_MISSING
    assert code_of(lambda: locations.read_bytes("../p")) is ErrorCode.IMAGE_MISSING
    assert code_of(lambda: locations.read_bytes("x.png", max_bytes=3)) is ErrorCode.IMAGE_TOO_LARGE
    assert code_of(lambda: locations.read_bytes("../secret.png")) is ErrorCode.LOCATION_DENIED
    elsewhere = Locations(allowed_roots=("s3://no-such-bucket",), base_uri=s3_folder)
    assert code_of(lambda: elsewhere.read_bytes("s3://no-such-bucket/x.png")) is ErrorCode.IMAGE_MISSING


def test_where_a_website_would_redirect_to_is_not_read(s3_folder, s3_server, put):
    target = put("secret.png", b"no")
    locations = Locations(allowed_roots=(f"{s3_folder}/p",), base_uri=f"{s3_folder}/p")
    bucket, _, key = s3_folder.removeprefix("s3://").partition("/")
    filesystem = locations.filesystem(locate(s3_folder))
    elsewhere = target.replace("s3://", f"{s3_server.endpoint_url}/")
    filesystem.call_s3(
        "put_object", Bucket=bucket, Key=f"{key}/p/x.png", Body=b"own", WebsiteRedirectLocation=elsewhere
    )
    assert locations.read_bytes("x.png") == b"own"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "endpoint_url"])
def test_an_address_with_a_password_is_refused_without_showing_it(monkeypatch, name):
    address = "http://user:hunter2@127.0.0.1:9"
    given = {name: address} if name == "endpoint_url" else {}
    if not given:
        monkeypatch.setenv(name, address)
    # Of its own: filesystems are kept by their options.
    locations = Locations(storage_options={"key": f"key for {name}", **given})
    with pytest.raises(ConfigurationError, match=f"{name}: .* no password") as raised:
        locations.filesystem(locate("s3://tests/x.png"))
    assert "hunter2" not in str(raised.value)


def test_given_options_override_the_environment(s3_folder, s3_server, put, monkeypatch):
    put("x.png", b"data")
    for name in s3_server.environment:
        monkeypatch.delenv(name)
    with_keys = Locations(allowed_roots=(s3_folder,), base_uri=s3_folder, storage_options=s3_server.storage_options)
    assert with_keys.read_bytes("x.png") == b"data"
    wrong = replace(with_keys, storage_options={**s3_server.storage_options, "secret": "wrong"})
    assert code_of(lambda: wrong.read_bytes("x.png")) is ErrorCode.LOCATION_DENIED


def test_no_keys_at_all_is_denied_with_the_remedy(s3_server, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {"endpoint_url": s3_server.endpoint_url, "region": "us-east-1"}
    locations = Locations(allowed_roots=("s3://tests",), base_uri="s3://tests", storage_options=options)
    with pytest.raises(ItemError, match="permissions and keys") as raised:
        locations.read_bytes("x.png")
    assert raised.value.code is ErrorCode.LOCATION_DENIED


def test_a_child_process_opens_its_own_filesystem(s3_folder, put):
    """A forked one too, although its parent has used S3 already."""
    put("x.png", b"data")
    locations = Locations(allowed_roots=(s3_folder,), base_uri=s3_folder)
    assert locations.read_bytes("x.png") == b"data"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(locations.read_bytes, ("x.png",)).get(timeout=30) == b"data"


@pytest.mark.parametrize("faults", [["503", "500"], ["reset"], ["reset", "503", "reset"]])
def test_trouble_that_passes_costs_no_item(s3_folder, put, faulty, faults, monkeypatch):
    put("x.png", b"data" * 1000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
    options = {"endpoint_url": faulty.url}
    locations = Locations(allowed_roots=(s3_folder,), base_uri=s3_folder, storage_options=options)
    faulty.faults = deque(faults)
    assert locations.read_bytes("x.png") == b"data" * 1000
    faulty.faults = deque([None, "truncate"])
    assert locations.read_bytes("x.png") == b"data" * 1000
    assert not faulty.faults


@pytest.mark.parametrize(
    ("fault", "code"),
    [("503", ErrorCode.STORAGE_ERROR), ("reset", ErrorCode.STORAGE_ERROR), ("truncate", ErrorCode.STORAGE_ERROR),
     ("403", ErrorCode.LOCATION_DENIED)],
)  # fmt: skip
def test_trouble_that_stays_is_an_error_of_its_kind(s3_folder, put, faulty, fault, code):
    put("x.png", b"data" * 1000)
    options = {"endpoint_url": faulty.url}
    locations = Locations(allowed_roots=(s3_folder,), base_uri=s3_folder, storage_options=options)
    faulty.always = fault
    assert code_of(lambda: locations.read_bytes("x.png")) is code


def test_writes_are_repeated_until_they_are_whole(s3_folder, faulty, make_row):
    output = RunOutput(f"{s3_folder}/out", Locations(storage_options={"endpoint_url": faulty.url}))
    faulty.faults = deque(["503", "reset", "500"])
    output.write_results("run", 0, [make_row(1)])
    faulty.faults = deque(["503"])
    assert len(list(output.read_result_rows())) == 1


def test_a_worker_waits_out_what_others_give_up_on(s3_folder, faulty, put, monkeypatch):
    monkeypatch.setattr(filesystems_module, "PATIENT_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(filesystems_module, "_is_patient", False)
    locations = Locations(allowed_roots=(s3_folder,), base_uri=s3_folder, storage_options={"endpoint_url": faulty.url})
    put("x.png", b"picture")
    faulty.always = "reset"
    assert code_of(lambda: locations.read_bytes("x.png")) is ErrorCode.STORAGE_ERROR
    num_impatient = faulty.num_requests
    filesystems_module.be_patient()
    faulty.num_requests = 0
    assert code_of(lambda: locations.read_bytes("x.png")) is ErrorCode.STORAGE_ERROR
    assert faulty.num_requests >= num_impatient + 3
    faulty.always, faulty.faults = None, deque(["reset"] * num_impatient)
    assert locations.read_bytes("x.png") == b"picture"


def test_a_server_that_is_away_is_named(s3_folder, make_row, monkeypatch):
    monkeypatch.setattr(filesystems_module, "RETRY_DELAYS_S", ())
    locations = Locations(storage_options={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(ConfigurationError, match=r"s3://tests/catalog\.csv cannot be read .*127\.0\.0\.1:9"):
        list(read_catalog("s3://tests/catalog.csv", locations))
    with pytest.raises(StorageUnavailableError, match=r"writing .*run-000000\.parquet.*127\.0\.0\.1:9"):
        RunOutput(f"{s3_folder}/out", locations).write_results("run", 0, [make_row(1)])


def test_keys_that_do_not_fit_are_named(s3_folder, make_row):
    locations = Locations(storage_options={"secret": "wrong"})
    with pytest.raises(PermissionError, match=r"writing .*run-000000\.parquet"):
        RunOutput(f"{s3_folder}/out", locations).write_results("run", 0, [make_row(1)])
