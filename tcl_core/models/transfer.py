"""Getting the bytes of one file over http(s), continuing where an earlier attempt stopped.

urllib is used because it is always there, keeps to http(s) with the handlers chosen below, and leaves the Range and
If-Range headers to us; the libraries that download model weights either do not resume or serve one hub alone.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, cast

from tqdm import tqdm

from tcl_core.errors import WeightsError

__all__ = ["TransferError", "copy_file", "state_path", "transfer"]

_CHUNK = 1 << 20


class TransferError(Exception):
    """The bytes could not be had; the message is the reason, without file or address."""


class _Retry(Exception):
    """This attempt failed, another one may succeed."""


@dataclass
class _State:
    """What the server said about the file whose first bytes lie in the part file."""

    url: str
    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        # A weak ETag promises the same meaning, not the same bytes (RFC 9110, 13.1.5).
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https://"):
            raise TransferError(f"the server redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def state_path(part: Path) -> Path:
    """The small file beside a part file that says which version of which file it is a part of."""
    return part.with_name(part.name + ".json")


def transfer(
    url: str,
    part: Path,
    *,
    size: int | None = None,
    trust_parts: bool = False,
    progress: bool = True,
    attempts: int = 3,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> None:
    """Fetch ``url`` into ``part``, continuing with the bytes that are already there.

    A part is continued when the server still has the same version (strong ETag or modification time); a server that
    does not know ranges, or has another version, is read from the start again.

    Args:
        url: http or https address.
        part: file that grows; afterwards it holds the whole body.
        size: expected number of bytes, ``None`` where it is not known.
        trust_parts: continue also where the server names no version; only for files whose hash is checked afterwards.
        progress: show a progress bar on standard error.
        attempts: consecutive attempts without any new byte before giving up.
        pause: seconds before the second attempt; doubled each time.
        timeout: seconds without an answer before an attempt counts as failed.

    Raises:
        TransferError: the server refuses, answers with something else, or cannot be reached. The part file stays.
        WeightsError: the part file cannot be written.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise TransferError("only http and https addresses are read")
    failures, furthest = 0, _size(part)
    with tqdm(
        desc=part.name.removesuffix(".part"), unit="B", unit_scale=True, unit_divisor=1024, disable=not progress
    ) as bar:
        while True:
            try:
                _attempt(url, part, size, trust_parts, timeout, bar)
                return
            except _Retry as error:
                got = _size(part)
                failures = 0 if got > furthest else failures + 1
                furthest = max(got, furthest)
                if failures >= attempts:
                    raise TransferError(f"{error}; {got} bytes were received and are kept") from error
                time.sleep(pause * 2 ** max(failures - 1, 0))


def copy_file(source: Path, part: Path, *, progress: bool = True) -> None:
    """Copy a file of a mirror folder into ``part``.

    Raises:
        TransferError: the source cannot be read.
        WeightsError: the part file cannot be written.
    """
    try:
        reader = open(source, "rb")
    except OSError as error:
        raise TransferError(f"{source}: {error.strerror}") from error
    with (
        reader,
        tqdm(total=_size(source), desc=source.name, unit="B", unit_scale=True, disable=not progress) as bar,
        _Writer(part, "wb") as writer,
    ):
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            bar.update(len(chunk))


class _Writer:
    """A file whose write errors are told apart from the network's."""

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        try:
            self._handle = cast(IO[bytes], open(path, mode))
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._handle.close()
        except OSError as error:
            raise self._error(error) from error

    def write(self, chunk: bytes) -> None:
        try:
            self._handle.write(chunk)
            self._handle.flush()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> WeightsError:
        free = ""
        if self._path.parent.is_dir():
            free = f" ({shutil.disk_usage(self._path.parent).free / 1e6:.0f} MB are free)"
        return WeightsError(
            f"{self._path}: cannot be written: {error.strerror}{free}; make room, or set TCL_ANNOTATE_HOME to another "
            "folder; what was received is kept and continued"
        )


def _attempt(url: str, part: Path, size: int | None, trust_parts: bool, timeout: float, bar: tqdm) -> None:
    state = _read_state(part, url, trust_parts)
    have = _size(part) if state else 0
    if state and state.total is not None and have == state.total:
        return
    headers = {"User-Agent": "tcl-annotate", "Accept-Encoding": "identity"}
    if state and have:
        headers["Range"] = f"bytes={have}-"
        if state.validator:
            headers["If-Range"] = state.validator
    try:
        with _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            answer = _State(url, response.headers["ETag"], response.headers["Last-Modified"])
            if state and have and response.status == 206:
                _check_continuation(response.headers, state, answer, have, part)
            else:
                _check_start(response, size, answer)
                have, state = 0, answer
                _forget(part)
                _write_state(part, state)
            bar.total, bar.n = state.total or size, have
            bar.refresh()
            with _Writer(part, "ab") as writer:
                # read1 gives what has arrived; read would hold back up to a whole chunk, which a kill would lose.
                while chunk := response.read1(_CHUNK):
                    have += len(chunk)
                    if size is not None and have > size:
                        _forget(part)
                        raise TransferError(f"the server sends more than the expected {size} bytes")
                    writer.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            _forget(part)
            raise _Retry("the server no longer has the rest of this version") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Retry(f"the server answers {error.code} {error.reason}") from error
        raise TransferError(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        # Nothing listens there, or the name is not known: asking again at once does not help.
        if isinstance(error.reason, ConnectionRefusedError | socket.gaierror):
            raise TransferError(f"no connection: {error.reason}") from error
        raise _Retry(f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"the connection broke: {error or type(error).__name__}") from error
    if state.total is not None and _size(part) < state.total:
        raise _Retry(f"the connection ended after {_size(part)} of {state.total} bytes")


def _check_start(response: http.client.HTTPResponse, size: int | None, answer: _State) -> None:
    if response.status != 200:
        raise TransferError(f"the server answers {response.status} {response.reason}")
    if response.headers.get_content_type() == "text/html":
        raise TransferError("the server answers with a web page instead of the file (moved, or a login or proxy page)")
    length = response.headers["Content-Length"]
    answer.total = int(length) if length and length.isdigit() else None
    if size is not None and answer.total is not None and answer.total != size:
        raise TransferError(f"the server has a file of {answer.total} bytes, but {size} are expected")


def _check_continuation(headers: Message, state: _State, answer: _State, have: int, part: Path) -> None:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", (headers["Content-Range"] or "").strip())
    total = int(found[2]) if found and found[2] != "*" else None
    same_total = total is None or state.total is None or total == state.total
    same_version = not (state.etag and answer.etag) or state.etag == answer.etag
    if not found or int(found[1]) != have or not same_total or not same_version:
        _forget(part)
        raise _Retry("the file on the server changed while it was being downloaded")
    state.total = state.total if state.total is not None else total


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SafeRedirects(),
    ):
        opener.add_handler(handler)
    return opener


def _read_state(part: Path, url: str, trust_parts: bool) -> _State | None:
    try:
        state = _State(**json.loads(state_path(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    usable = part.is_file() and state.url == url and (trust_parts or state.validator is not None)
    return state if usable else None


def _write_state(part: Path, state: _State) -> None:
    with _Writer(state_path(part), "wb") as writer:
        writer.write(json.dumps(asdict(state)).encode())


def _forget(part: Path) -> None:
    for path in (part, state_path(part)):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return os.path.getsize(path) if path.exists() else 0
