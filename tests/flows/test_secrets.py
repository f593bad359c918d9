"""Secrets that a run is given are found nowhere afterwards: not in what it stores, says, shows or logs."""

import base64
import functools
import io
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from prefect.logging.handlers import APILogWorker

import tasks.catalog.run
from ezigen.config import CatalogInputs, ClusterConfig
from flows.personalize_catalog import personalize_catalog
from flows.storage_block import EzigenS3
from tasks.storage import Locations, RunOutput
from tests.run.catalogs import write_catalog
from tests.run.light import SlowWorker
from tests.s3_server import GUEST_KEY, GUEST_SECRET, S3Server

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "environment/Secret+key=7d21",
    "AWS_SESSION_TOKEN": "environment//session+token==c04e",
    "HF_TOKEN": "hf_planted_token_51ab",
}
WRONG_SECRET = "wrong/Secret+of=the&block%aa17"


def forms(secret: str) -> Iterator[bytes]:
    """A secret as it may stand in a text: as it is, URL-encoded, in hexadecimal, or within anything in base64."""
    data = secret.encode()
    yield from {data, quote(secret).encode(), quote(secret, safe="").encode(), quote_plus(secret).encode()}
    yield data.hex().encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Characters that hold bits of a neighbour are left out.
            whole = encode(bytes(before) + data + bytes(-(before + len(data)) % 3))
            yield whole[-(-before * 4 // 3) : (before + len(data)) * 8 // 6]


def find(secrets: Mapping[str, str], texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Where which secret stands."""
    needles = [(name, form) for name, secret in secrets.items() for form in forms(secret)]
    return sorted({f"{name} in {place}" for place, text in texts for name, form in needles if form in text})


@pytest.mark.parametrize("secret", [GUEST_SECRET, *ENVIRONMENT.values()])
@pytest.mark.parametrize("before", [b"", b"a", b"ab", b"abc"])
def test_the_search_finds_what_is_hidden(secret, before):
    whole = before + secret.encode() + b"rest"
    hidden = {
        "clear": b"see " + whole,
        "base64": b"see " + base64.b64encode(whole),
        "urlsafe": base64.urlsafe_b64encode(whole),
        "url": quote(whole, safe="").encode(),
        "query": quote_plus(whole).encode(),
        "hex": whole.hex().encode(),
    }
    assert find({"it": secret}, hidden.items()) == sorted(f"it in {place}" for place in hidden)
    assert not find({"it": secret}, [("", base64.b64encode(whole[::-1]))])


@pytest.mark.slow
def test_secrets_of_a_run_are_found_nowhere(
    tmp_path, monkeypatch, capfd, caplog, reporting_here, ray_address, s3_server, s3_folder
):
    """Of a run with a picture that it may not read, and of one that may read nothing."""
    for name, value in {**ENVIRONMENT, "AWS_ACCESS_KEY_ID": "AKIAOFTHEENVIRONMENT"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        tasks.catalog.run, "run_catalog", functools.partial(tasks.catalog.run.run_catalog, worker=SlowWorker)
    )
    for name, secret in (("planted", GUEST_SECRET), ("wrong", WRONG_SECRET)):
        EzigenS3(
            endpoint_url=s3_server.endpoint_url, region="us-east-1", access_key_id=GUEST_KEY, secret_access_key=secret
        ).save(name, overwrite=True)
    output = upload_catalog(tmp_path, s3_server, s3_folder)

    with watch_processes() as seen:
        done = run(s3_folder, "planted", ray_address)
        denied = run(s3_folder, "wrong", ray_address)
    APILogWorker.drain_all(timeout=10)

    assert done.message == "3 done, 1 failed"
    assert denied.is_failed()
    texts = [
        *stored(output),
        *told_by_prefect(reporting_here.api_url),
        *files(Path(reporting_here.environment["PREFECT_HOME"])),
        *files(Path(ray._private.worker._global_node.get_session_dir_path())),
        *seen.items(),
        ("standard output and error", "".join(capfd.readouterr()).encode()),
        ("log records", caplog.text.encode()),
    ]
    places = " ".join(place for place, _ in texts)
    for expected in ("run.json", "report.html", "logs of Prefect", "raylet.out", "environment of ray::", "command of"):
        assert expected in places, "nothing was looked at there"
    assert b"location_denied" in dict(texts)[f"{s3_folder}/out/results"], "the error is stored"
    assert find({"key": GUEST_KEY}, texts), "the name of a key is no secret, and found"
    # Ray's processes have their token from their environment.
    texts_without_token = [(place, text) for place, text in texts if not place.startswith("environment of")]
    assert not find({"RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}, texts_without_token)
    assert not find({**ENVIRONMENT, "block": GUEST_SECRET, "wrong block": WRONG_SECRET}, texts)


def upload_catalog(folder: Path, server: S3Server, s3_folder: str) -> RunOutput:
    """Three good rows, and one with a picture in a bucket that the guest may not read."""
    catalog = write_catalog(folder / "shop", 4, subject_uri={3: "s3://closed/x.png"})
    locations = Locations(storage_options=server.storage_options)
    output = RunOutput(f"{s3_folder}/out", locations)
    filesystem = output.filesystem
    if not filesystem.exists("closed"):
        filesystem.mkdir("closed")
    filesystem.pipe_file("closed/x.png", b"closed")
    for path in catalog.parent.iterdir():
        filesystem.pipe_file(f"{s3_folder.removeprefix('s3://')}/{path.name}", path.read_bytes())
    return output


def run(s3_folder: str, block: str, ray_address: str):
    """The final state of a run."""
    inputs = CatalogInputs(
        catalog_uri=f"{s3_folder}/catalog.csv",
        output_uri=f"{s3_folder}/out",
        allowed_roots=[s3_folder, "s3://closed"],
        storage_block=block,
        max_failed_share=0.5,
    )
    cluster = ClusterConfig(address=ray_address, num_workers=1, num_slots=2, flush_interval_s=0.5)
    return personalize_catalog(inputs, cluster=cluster, return_state=True)


@contextmanager
def watch_processes() -> Iterator[dict[str, bytes]]:
    """Command lines and environments of every process that this one has started, by what they are."""
    seen: dict[str, bytes] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    name = f"{process.cmdline()[0]} ({process.pid})" if process.cmdline() else str(process.pid)
                    seen[f"command of {name}"] = "\n".join(process.cmdline()).encode()
                    seen[f"environment of {name}"] = repr(process.environ()).encode()
                except psutil.Error:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def stored(output: RunOutput) -> Iterator[tuple[str, bytes]]:
    """Every object of the output; of tables also what they say, since they are compressed."""
    rows = []
    for path in output.filesystem.find(output.root.path):
        data = output.filesystem.cat_file(path)
        yield f"s3://{path}", data
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            rows.append(repr(table.to_pylist()) + repr(table.schema.metadata))
    yield output.uri("results"), "\n".join(rows).encode()


def told_by_prefect(api_url: str) -> Iterator[tuple[str, bytes]]:
    """What anybody may ask the server for."""
    for kind in ("flow_runs", "task_runs", "logs", "artifacts", "events", "block_documents"):
        page = 0
        while True:
            asked = {"limit": 200, "offset": page * 200} if kind != "events" else {"limit": 50}
            answer = httpx.post(f"{api_url}/{kind}/filter", json=asked)
            answer.raise_for_status()
            yield f"{kind} of Prefect, page {page}", answer.content
            page += 1
            if kind == "events" or len(answer.json()) < 200:
                break


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Regular files below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()
