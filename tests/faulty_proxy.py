"""A reverse proxy on loopback that misbehaves on request: 503, resets, stalls, truncated bodies, flipped bits."""

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["503", "500", "403", "reset", "truncate", "stall", "flip"]
STALL_S = 15.0
_ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>made up</Message></Error>"
_CODES = {"503": b"SlowDown", "500": b"InternalError", "403": b"AccessDenied"}


@dataclass
class FaultyProxy:
    """Faults are used up one per request, in order; then `always` applies; without either, requests pass through.

    Only answers to GET are truncated, and only what is PUT has a bit flipped. A request that stalls is answered as
    ever, STALL_S later.
    """

    url: str
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    num_requests: int = 0

    def next_fault(self) -> Fault | None:
        self.num_requests += 1
        return self.faults.popleft() if self.faults else self.always


@contextlib.contextmanager
def run_faulty_proxy(target_url: str) -> Iterator[FaultyProxy]:
    """A proxy in front of a server, as long as the block lasts."""
    target = urlsplit(target_url)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = FaultyProxy(f"http://127.0.0.1:{server.server_address[1]}")
    server.proxy, server.target = proxy, (target.hostname, target.port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that is killed, or that gives up, is what a proxy like this one is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.next_fault()
        if fault == "reset":
            self._reset()
        elif fault in _CODES:
            self._answer(int(fault), [], _ERROR % _CODES[fault])
        else:
            if fault == "stall":
                time.sleep(STALL_S)
            if fault == "flip" and self.command == "PUT" and body:
                body = body[:-1] + bytes([body[-1] ^ 1])
            self._forward(body, truncate=fault == "truncate" and self.command == "GET")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

    def _forward(self, body, *, truncate):
        connection = http.client.HTTPConnection(*self.server.target, timeout=30)
        # The request is passed on with its Host, which is part of what its signature covers.
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
        self._answer(answer.status, headers, data, truncate=truncate)
        connection.close()

    def _answer(self, status, headers, data, *, truncate=False):
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if "content-length" not in {name.lower() for name, _ in headers}:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if truncate else data)
        if truncate:
            self._reset()

    def _reset(self):
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_):
        pass
