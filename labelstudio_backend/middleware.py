"""ASGI middleware: authentication and request-size limits."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tcl_core.errors import SettingsError

__all__ = ["OPEN_PATHS", "BasicAuth", "BodyLimit", "NoTracebacks", "read_auth_file"]

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/webhook"})
"""Routes without credentials: Label Studio sends none with webhooks, and a health check must not need a secret."""


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
    """Refuses bodies above a size, by their declared length or once so much has come.

    Args:
        app: what is protected.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        too_large = f"the request is larger than {self.max_bytes} bytes"
        if not declared.isdigit() or int(declared) > self.max_bytes:
            await _refuse(send, 413, too_large, [(b"connection", b"close")])
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                await _refuse(send, 413, too_large, [(b"connection", b"close")])
                return
            if not message.get("more_body", False):
                break
        given = False

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            return await receive()

        await self.app(scope, replay, send)


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
