"""A web server on the loopback for one file, with the faults that downloads meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tcl_core.models.manifest import RemoteFile


@dataclass
class FileServer:
    content: bytes
    content_type: str = "application/octet-stream"
    # Bytes after which the next answers are cut off; the connection is closed although more was announced.
    cuts: list[int] = field(default_factory=list)
    # Status codes of the next answers, before anything is served.
    statuses: list[int] = field(default_factory=list)
    announce_length: bool = True
    location: str | None = None
    pause: float = 0.0
    # If set, every answer waits for it after its first 60,000 bytes.
    gate: threading.Event | None = None
    requests: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def file(self, filename: str = "file.safetensors", **values: object) -> RemoteFile:
        defaults = {
            "name": "file",
            "filename": filename,
            "url": f"{self.base}/some/where/{filename}",
            "size": None,
            "sha256": None,
            "license": "MIT",
            "source": "here",
        }
        return RemoteFile(**{**defaults, **values})  # type: ignore[arg-type]


@contextmanager
def serve(server: FileServer) -> Iterator[FileServer]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            with lock:
                server.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                status = server.statuses.pop(0) if server.statuses else 0
                cut = server.cuts.pop(0) if server.cuts else None
            self.close_connection = True
            time.sleep(server.pause)
            if server.location:
                self.send_response(302)
                self.send_header("Location", server.location)
                self.end_headers()
                return
            if status:
                self.send_error(status)
                return
            self.send_response(200)
            self.send_header("Content-Type", server.content_type)
            if server.announce_length:
                self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            body = server.content[:cut]
            with suppress(ConnectionError):
                if server.gate is not None:
                    self.wfile.write(body[:60_000])
                    server.gate.wait(30)
                    body = body[60_000:]
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        server.port = listener.server_port
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
