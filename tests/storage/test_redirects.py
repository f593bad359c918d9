"""A store that answers with another address: nobody goes there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ezigen.config import ConfigurationError, ErrorCode, ItemError
from tasks.datasets.catalogs import read_catalog
from tasks.storage import Locations

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that gives every request the same answer: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, body = answer
            self.send_response(status)
            for name, value in (*headers.items(), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    with serve((200, {"ETag": '"x"'}, b"keys of the machine's role")) as served:
        yield served


def reach(address: str) -> Locations:
    options = {"endpoint_url": address, "key": "key", "secret": "secret", "region": "us-east-1"}
    return Locations(allowed_roots=("s3://shop",), base_uri="s3://shop", storage_options=options)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error(elsewhere, status):
    address, visited = elsewhere
    with serve((status, {"Location": f"{address}/latest/meta-data"}, b"")) as (store, asked):
        with pytest.raises(ItemError, match=f"redirect .{status}., which is not followed") as raised:
            reach(store).read_bytes("x.png")
        assert asked == ["/shop/x.png"], "the store is asked once"
    assert raised.value.code is ErrorCode.STORAGE_ERROR
    assert not visited


@pytest.mark.parametrize("region", ["eu-west-1", "{host}/x", "a@{host}"])
def test_a_bucket_of_another_region_leads_to_no_other_host(elsewhere, region):
    address, visited = elsewhere
    headers = {"Location": address, "x-amz-bucket-region": region.format(host=address.removeprefix("http://"))}
    with serve((301, headers, b"")) as (store, _), pytest.raises(ItemError) as raised:
        reach(store).read_bytes("x.png")
    assert raised.value.code is ErrorCode.STORAGE_ERROR
    assert not visited


def test_a_catalog_is_not_read_from_elsewhere(elsewhere):
    address, visited = elsewhere
    with serve((307, {"Location": address}, b"")) as (store, _), pytest.raises(ConfigurationError, match="redirect"):
        list(read_catalog("s3://shop/catalog.csv", reach(store)))
    assert not visited
