"""ASGI middleware: authentication and request-size limits."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from anyio import fail_after, move_on_after
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tcl_core.errors import SettingsError

__all__ = ["BODY_PATHS", "OPEN_PATHS", "BasicAuth", "BodyLimit", "NoTracebacks", "read_auth_file"]

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/webhook"})
"""Routes without credentials: Label Studio sends none with webhooks, and a health check must not need a secret."""
BODY_PATHS = frozenset({"/predict", "/setup"})
"""Routes that need the body of a request."""
_UNNEEDED_BYTES = 1 << 20
_UNNEEDED_SECONDS = 5.0
_CLOSE = (b"connection", b"close")


def read_auth_file(path: Path) -> tuple[str, ...]:
    """Read ``name:password`` lines; empty ones and those that begin with ``#`` are passed over.

    Raises:
        SettingsError: the file cannot be read, holds no pair or a line that is none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--auth-file {path}: cannot be read ({error})") from error
    pairs = [(number, line) for number, line in enumerate(lines, start=1) if line and not line.startswith("#")]
    for number, line in pairs:
        name, colon, password = line.partition(":")
        if not (name and colon and password):
            raise SettingsError(f"--auth-file {path}: line {number} is not of the form name:password")
    if not pairs:
        raise SettingsError(f"--auth-file {path}: contains no name:password line")
    return tuple(line for _, line in pairs)


class BasicAuth:
    """Lets requests pass that carry one of the credentials (RFC 7617).

    Args:
        app: what is protected.
        credentials: ``name:password`` pairs.
    """

    def __init__(self, app: ASGIApp, credentials: Sequence[str]) -> None:
        self.app = app
        self._credentials = [pair.encode() for pair in credentials]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(scope):
            await self.app(scope, receive, send)
            return
        await _refuse(send, 401, "wrong or missing credentials", [(b"www-authenticate", b'Basic realm="tcl-annotate"')])

    def _admits(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, encoded = given.partition(b" ")
        try:
            pair = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            pair = b""
        # Every pair is compared, each in constant time: the time of an answer tells nothing about them.
        matches = [hmac.compare_digest(pair, known) for known in self._credentials]
        return kind.lower() == b"basic" and any(matches)


class BodyLimit:
    """Refuses bodies above a size, by their declared length or once so much has come, and those that come too slowly.

    Routes that need no body get none: it is thrown away as it comes.

    Args:
        app: what is protected.
        max_bytes: largest body.
        max_total: most of all bodies together; more are refused until others are done with.
        seconds: until a body is complete.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_total: int | None = None, seconds: float = 60.0) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_total = max_bytes if max_total is None else max_total
        self.seconds = seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if scope["path"] not in BODY_PATHS:
            ended = await self._throw_away(receive)
            await self.app(scope, _given(b""), send if ended else _closing(send))
            return
        if not declared.isdigit() or int(declared) > self.max_bytes:
            await self._refuse_size(send)
            return
        # What came, not what is declared: a length is only a promise.
        held = 0
        body = bytearray()
        try:
            try:
                with fail_after(self.seconds):
                    while True:
                        message = await receive()
                        if message["type"] != "http.request":
                            return
                        part = message.get("body", b"")
                        if len(body) + len(part) > self.max_bytes:
                            await self._refuse_size(send)
                            return
                        if self._held + len(part) > self.max_total:
                            headers = [_CLOSE, (b"retry-after", b"5")]
                            await _refuse(send, 503, "too many large requests at once; try again soon", headers)
                            return
                        held += len(part)
                        self._held += len(part)
                        body += part
                        if not message.get("more_body", False):
                            break
            except TimeoutError:
                await _refuse(send, 408, f"the request was not complete after {self.seconds:g} seconds", [_CLOSE])
                return
            whole = bytes(body)
            body.clear()
            await self.app(scope, _given(whole, receive), send)
        finally:
            self._held -= held

    async def _refuse_size(self, send: Send) -> None:
        await _refuse(send, 413, f"the request is larger than {self.max_bytes} bytes", [_CLOSE])

    async def _throw_away(self, receive: Receive) -> bool:
        """Read a body that nobody needs, without keeping it; gives whether that was all."""
        count = 0
        with move_on_after(min(self.seconds, _UNNEEDED_SECONDS)):
            while count <= _UNNEEDED_BYTES:
                message = await receive()
                count += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return True
        return False


def _given(body: bytes, receive: Receive | None = None) -> Receive:
    """A body that has been read already."""
    given = False

    async def replay() -> Message:
        nonlocal given, body
        if not given:
            given = True
            whole, body = body, b""
            return {"type": "http.request", "body": whole, "more_body": False}
        return {"type": "http.disconnect"} if receive is None else await receive()

    return replay


def _closing(send: Send) -> Send:
    """Ends the connection with the answer."""

    async def close(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), _CLOSE]}
        await send(message)

    return close


class NoTracebacks:
    """Turns whatever goes wrong inside into one sentence; the traceback goes to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            logger.exception("internal error at %s", scope.get("path"))
            if begun or scope["type"] != "http":
                raise
            await _refuse(send, 500, "internal error; see the server's log", [])


async def _refuse(send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"detail": detail}).encode()
    length = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*length, *headers]})
    await send({"type": "http.response.body", "body": body})
