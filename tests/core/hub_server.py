"""A Hugging Face hub on the loopback: any file of any repository, with the faults that downloads meet.

``with serve_hub(HubServer({"org/name": {"open_clip_model.safetensors": content}})) as hub`` and ``HF_ENDPOINT`` set to
``hub.endpoint`` are all that :func:`tcl_core.models.download.fetch_file` needs. Other users of huggingface_hub read
the variable when they import it, so run them in a process of their own. No file is offered through Xet.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tcl_core.models.manifest import RemoteFile

_CHUNK = 1 << 20


@dataclass
class HubServer:
    # Repositories by name, files by name: bytes, or a path to read them from. May be changed while it serves.
    repos: dict[str, dict[str, bytes | Path]]
    # Large files lie on another server, to which the hub redirects.
    redirect: bool = False
    # Bytes after which the next answers with a file are cut off; the connection is closed although more was announced.
    cuts: list[int] = field(default_factory=list)
    # Status codes of the next answers, before anything is served.
    statuses: list[int] = field(default_factory=list)
    # Served in place of a file's bytes, under the headers of the file: damage on the way.
    damaged: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    # Whether a token has to be sent.
    gated: bool = False
    # Whether the answers look like those of a hub.
    is_hub: bool = True
    # If set, every file waits for it after its first 60,000 bytes.
    gate: threading.Event | None = None
    # Method, path and headers (in lower case) of every request, also of those that nobody should send.
    requests: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    storage_port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def commit(self, repo: str) -> str:
        lines = (f"{name} {_sha256(content)}" for name, content in sorted(self.repos[repo].items()))
        return hashlib.sha1("\n".join(lines).encode()).hexdigest()

    def file(self, repo: str, filename: str, **values: object) -> RemoteFile:
        """As the manifest would have it: with the address on the real hub."""
        defaults = {
            "name": "file",
            "filename": filename,
            "url": f"https://huggingface.co/{repo}/resolve/main/{filename}",
            "size": None,
            "sha256": None,
            "license": "MIT",
            "source": f"https://huggingface.co/{repo}",
        }
        return RemoteFile(**{**defaults, **values})  # type: ignore[arg-type]

    def ranges_asked(self) -> list[str]:
        """The range of each request for bytes; empty for a whole file."""
        return [request.get("range", "") for request in self.requests if request["method"] == "GET"]


@contextmanager
def serve_hub(hub: HubServer) -> Iterator[HubServer]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            with lock:
                headers = {key.lower(): value for key, value in self.headers.items()}
                hub.requests.append({"method": self.command, "path": path, **headers})
                status = hub.statuses.pop(0) if hub.statuses else 0
            self.close_connection = True
            if status:
                return self.refuse(status)
            stored = re.fullmatch(r"/storage/([0-9a-f]{64})", path)
            if stored:
                contents = (content for files in hub.repos.values() for content in files.items())
                found = next((item for item in contents if _sha256(item[1]) == stored[1]), None)
                return self.send(*found, {}, body) if found else self.refuse(404)
            asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if not asked or asked[1] not in hub.repos:
                return self.refuse(401, "RepoNotFound")
            repo, revision, filename = asked.groups()
            if hub.gated and "authorization" not in headers:
                return self.refuse(401, "GatedRepo")
            if revision not in ("main", hub.commit(repo)):
                return self.refuse(404, "RevisionNotFound")
            if filename not in hub.repos[repo]:
                return self.refuse(404, "EntryNotFound")
            content = hub.repos[repo][filename]
            sha256 = _sha256(content)
            told = {"X-Repo-Commit": hub.commit(repo)} if hub.is_hub else {}
            if not hub.redirect:
                return self.send(filename, content, {**told, "ETag": f'"{sha256}"'}, body)
            self.send_response(302)
            for key, value in {
                **told,
                "X-Linked-ETag": f'"{sha256}"',
                "X-Linked-Size": str(_size(content)),
                # Another host, which must not see the token.
                "Location": f"http://localhost:{hub.storage_port}/storage/{sha256}",
                "Content-Length": "0",
            }.items():
                self.send_header(key, value)
            self.end_headers()

        def refuse(self, status: int, code: str = "") -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, filename: str, content: bytes | Path, headers: dict[str, str], body: bool) -> None:
            content = hub.damaged.get(filename, content)
            size, start = _size(content), 0
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "") if hub.ranges else None
            if wanted:
                start = int(wanted[1])
                if start >= size:
                    return self.refuse(416)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            headers = {"Content-Type": "application/octet-stream", **headers, "Content-Length": str(size - start)}
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if not body:
                return
            with lock:
                end = start + hub.cuts.pop(0) if hub.cuts else size
            with suppress(ConnectionError):
                for chunk in _chunks(content, start, min(end, size)):
                    if hub.gate is not None:
                        self.wfile.write(chunk[:60_000])
                        hub.gate.wait(30)
                        chunk = chunk[60_000:]
                    self.wfile.write(chunk)

    with ExitStack() as stack:
        ports = []
        for _ in range(2):
            listener = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown)
            ports.append(listener.server_port)
        hub.port, hub.storage_port = ports
        yield hub


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _chunks(content: bytes | Path, start: int, end: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content[start:end]
        return
    with open(content, "rb") as handle:
        handle.seek(start)
        while chunk := handle.read(min(_CHUNK, end - start)):
            start += len(chunk)
            yield chunk


_hashes: dict[tuple[str, int, int], str] = {}


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    # A whole model is not read anew for every request.
    stat = content.stat()
    key = (str(content), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with open(content, "rb") as handle:
            _hashes[key] = hashlib.file_digest(handle, "sha256").hexdigest()
    return _hashes[key]
