"""A real HTTP server for the tests of fetching: it gives images, and misbehaves on request."""

from __future__ import annotations

import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from PIL import Image

__all__ = ["PNG", "ImageServer"]

REFRESH_TOKEN = "header.personal.signature"


def _png() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 40)).save(encoded, "PNG")
    return encoded.getvalue()


PNG = _png()


class ImageServer:
    """Serves `PNG`, with a cookie, and notes what it was asked.

    * ``/data/upload/...``, ``/data/local-files/``: the image; with ``token`` set only to who brings it. The last part
      of the path may be one of the words below.
    * ``/tasks/N/resolve/``: a redirect to ``resolves_to``, where that is set. ``/presigned/...``: the image.
    * ``/redirect?to=URL``: a redirect; ``/loop``: one to itself.
    * ``/declared``: a length of 10 GB. ``/endless``: bytes without a length.
    * ``/slow``: a header now, then a byte now and then.
    * ``/api/token/refresh/``: exchanges `REFRESH_TOKEN` for an access token, unless ``refresh_status`` is an error.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.token: str | None = None
        self.resolves_to: str | None = None
        self.refreshed = 0
        self.refresh_status = 200
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner.requests.append(("POST", self.path, dict(self.headers)))
                if self.path != "/api/token/refresh/" or json.loads(body) != {"refresh": REFRESH_TOKEN}:
                    self._send(401, b"{}")
                    return
                if owner.refresh_status != 200:
                    self._send(owner.refresh_status, b"down")
                    return
                owner.refreshed += 1
                owner.token = f"Bearer access-{owner.refreshed}"
                self._send(200, json.dumps({"access": f"access-{owner.refreshed}"}).encode())

            def do_GET(self) -> None:
                owner.requests.append(("GET", self.path, dict(self.headers)))
                parts = urlsplit(self.path)
                word = parts.path.rpartition("/")[2]
                given = parse_qs(parts.query, keep_blank_values=True).get("to", [owner.resolves_to])[0]
                if word in ("redirect", "loop") or (parts.path.endswith("/resolve/") and given is not None):
                    self.send_response(302)
                    self.send_header("Location", parts.path if word == "loop" else given or "")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif word == "declared":
                    self.send_response(200)
                    self.send_header("Content-Length", str(10 << 30))
                    self.end_headers()
                    owner._closing.wait(5)
                elif word in ("slow", "endless"):
                    self._drip(b"x" if word == "slow" else b"x" * 65536, 0.2 if word == "slow" else 0)
                elif word == "missing.png":
                    self._send(404, b"")
                elif "/presigned/" in parts.path:
                    self._send(200, PNG)
                elif owner.token is not None and self.headers.get("Authorization") != owner.token:
                    self._send(401, b"")
                else:
                    self._send(200, PNG)

            def _drip(self, part: bytes, pause: float) -> None:
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                deadline = time.monotonic() + 20
                try:
                    while not owner._closing.is_set() and time.monotonic() < deadline:
                        self.wfile.write(part)
                        self.wfile.flush()
                        owner._closing.wait(pause)
                except OSError:
                    pass
                self.close_connection = True

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Set-Cookie", "session=secret; Path=/")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
