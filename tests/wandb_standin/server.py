"""The stand-in's HTTP: GraphQL, the file stream and storage, on a free port of 127.0.0.1."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

from wandb_standin import graph, runs
from wandb_standin.records import Refused, Run
from wandb_standin.state import State

STREAM = re.compile(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream")
SIDE = {"/sdk/otel/v1/metrics", "/sdk/otel/v1/logs"}
"""Where the client tells of itself; it takes no for an answer."""
Answer = tuple[int, bytes]


class Server(State):
    """The stand-in. Start it with `with Server() as server:`."""

    def __init__(self) -> None:
        super().__init__()
        self.port, self.status = 0, 200

    def __enter__(self) -> Server:
        self._up()
        return self

    def __exit__(self, *_: object) -> None:
        self._down()

    def _up(self) -> None:
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = _Http(("127.0.0.1", self.port), handler)
        self.port = self._http.server_port
        self.address = f"http://127.0.0.1:{self.port}"
        self._thread = Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    def _down(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @contextmanager
    def down(self) -> Iterator[None]:
        """No one listens meanwhile: connections are refused. The state stays."""
        self._down()
        try:
            yield
        finally:
            self._up()

    @contextmanager
    def failing(self, status: int = 503) -> Iterator[None]:
        """Whatever is asked meanwhile is answered with this HTTP status."""
        self.status = status
        try:
            yield
        finally:
            self.status = 200

    def environment(self, home: Path) -> dict[str, str]:
        """What a client process needs in its environment to know this server and no other.

        Everything it writes is below `home`. Not in it: `PATH`, and what says online or offline.
        """
        folders = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")
        for folder in folders:
            (home / folder.lower()).mkdir(parents=True, exist_ok=True)
        return {
            **{folder: str(home / folder.lower()) for folder in folders},
            "HOME": str(home),
            "WANDB_BASE_URL": self.address,
            "WANDB_API_KEY": "0123456789" * 4,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CONSOLE": "off",
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        }

    def run(self, name: str, project: str | None = None) -> Run:
        """The run of a name, in the one project that has it; KeyError for none or several."""
        found = [run for run in self.runs.values() if run.name == name]
        found = [run for run in found if project in {None, run.project}]
        if len(found) != 1:
            raise KeyError(f"{len(found)} runs named {name}")
        return found[0]

    def stop_run(self, entity: str, project: str, name: str) -> None:
        """The dashboard's Stop: the run hears of it at its next word to the file stream."""
        with self.lock:
            self.runs[entity, project, name].stop = True

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """What a request is answered; what is against the API is noted."""
        with self.lock:
            try:
                return self._answer(method, path, body)
            except Refused as refused:
                return _said(refused.status, {"errors": [{"message": str(refused)}]})
            except Exception as error:
                self.violations.append(f"{method} {path}: {error!r}")
                return _said(400, {"errors": [{"message": repr(error)}]})

    def _answer(self, method: str, path: str, body: bytes) -> Answer:
        stream = STREAM.fullmatch(path)
        if self.status != 200:
            return _said(self.status, {"errors": [{"message": "the stand-in is failing"}]})
        if (method, path) == ("POST", "/graphql"):
            return _said(*graph.answer(self, json.loads(body)))
        if method == "POST" and stream:
            entity, project, name = map(unquote, stream.groups())
            return _said(200, runs.stream(self, (entity, project, name), json.loads(body)))
        if path in self.boxes:
            return self._storage(method, path, body)
        if path in SIDE:
            return 404, b""
        raise LookupError("unknown path")

    def _storage(self, method: str, path: str, body: bytes) -> Answer:
        box, name = self.boxes[path]
        if method == "PUT":
            box[name] = body
            return 200, b""
        return (200, box[name]) if name in box else (404, b"")


@contextmanager
def checked() -> Iterator[Server]:
    """A server, and an AssertionError at the end if anything went against its API."""
    with Server() as server:
        yield server
    if server.violations:
        raise AssertionError("against W&B's API: " + "; ".join(server.violations))


def _said(status: int, what: Any) -> Answer:
    return status, json.dumps(what).encode()


class _Http(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed hangs up; that is no fault of anyone here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_state: Server
    timeout = 5
    """Seconds for a client that says nothing: closing waits for it."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, answer = self.server_state.answer(self.command, self.path, body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
