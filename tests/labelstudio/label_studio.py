"""A small HTTP server that answers the bulk command as Label Studio does, and keeps what it is sent."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

__all__ = ["LabelStudio"]

TOKEN = "legacy-key"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that was stopped says no goodbye.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class LabelStudio:
    """One project. A context manager.

    Args:
        config: labeling configuration.
        tasks: the data of each; their numbers begin with 1.
        files: uploaded files by name; the address of one is ``/data/upload/1/NAME``.

    Attributes:
        imported: bodies of the requests that stored predictions, in order.
        predictions: those stored, by number.
        on_image: called before each uploaded file is sent, with its name.
        silent: number of requests that store predictions and are answered as by a proxy that waited too long.
    """

    def __init__(self, config: str, tasks: Sequence[Mapping[str, Any]], files: Mapping[str, bytes]) -> None:
        self.imported: list[bytes] = []
        self.predictions: dict[int, dict[str, Any]] = {}
        self.on_image: Callable[[str], None] = lambda name: None
        self.silent = 0
        self._config, self._files = config, files
        self._tasks = {number: dict(data) for number, data in enumerate(tasks, start=1)}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def forget(self) -> None:
        """Delete all predictions."""
        self.imported.clear()
        self.predictions.clear()

    def results(self) -> dict[int, list[dict[str, Any]]]:
        """The results stored for each task."""
        return {each["task"]: each["result"] for each in self.predictions.values()}

    def _answer(self, method: str, path: str, query: Mapping[str, list[str]], body: bytes) -> tuple[int, Any]:
        if method == "GET" and path == "/api/projects/1/":
            project = {"id": 1, "title": "t", "label_config": self._config, "created_at": "2026-01-01T00:00:00Z"}
            return 200, project
        if method == "GET" and path == "/api/tasks/":
            return 200, self._listed(query)
        if method == "GET" and (found := re.fullmatch(r"/api/tasks/(\d+)/annotations/", path)):
            return (200, []) if int(found[1]) in self._tasks else (404, {})
        if method == "POST" and path == "/api/projects/1/import/predictions":
            self.imported.append(body)
            entries = json.loads(body)
            for entry in entries:
                number = next(self._numbers)
                self.predictions[number] = {"id": number, **entry}
            if self.silent:
                self.silent -= 1
                return 504, {}
            return 201, {"created": len(entries)}
        if method == "GET" and path == "/api/predictions/":
            return 200, [each for each in self.predictions.values() if each["task"] == int(query["task"][0])]
        if found := re.fullmatch(r"/api/predictions/(\d+)/", path):
            if method == "PATCH":
                self.predictions[int(found[1])] |= json.loads(body)
                return 200, {}
            if method == "DELETE":
                del self.predictions[int(found[1])]
                return 204, {}
        return 404, {"detail": f"{method} {path}"}

    def _listed(self, query: Mapping[str, list[str]]) -> dict[str, Any]:
        numbers = list(self._tasks)
        if "query" in query:
            (item,) = json.loads(query["query"][0])["filters"]["items"]
            having = {each["task"] for each in self.predictions.values() if each["model_version"] in item["value"]}
            numbers = [number for number in numbers if number in having]
        size, page = int(query["page_size"][0]), int(query["page"][0])
        counts = [each["task"] for each in self.predictions.values()]
        tasks = [
            {"id": number, "data": self._tasks[number], "total_predictions": counts.count(number)}
            for number in numbers[(page - 1) * size : page * size]
        ]
        return {"tasks": tasks, "total": len(numbers)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Header and body in one packet: the client would acknowledge the first of two only after a while.
            wbufsize = -1

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _do(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Authorization") != f"Token {TOKEN}":
                    self._send(401, b"{}")
                elif parts.path.startswith("/data/upload/1/"):
                    name = parts.path.rpartition("/")[2]
                    owner.on_image(name)
                    self._send(200 if name in owner._files else 404, owner._files.get(name, b""))
                else:
                    with owner._lock:
                        status, answer = owner._answer(self.command, parts.path, parse_qs(parts.query), body)
                    self._send(status, b"" if status == 204 else json.dumps(answer).encode())

            do_GET = do_POST = do_PATCH = do_DELETE = _do

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
