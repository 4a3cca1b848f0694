"""Connections within limits: how many there are, and how long each may take to say what it wants."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from labelstudio_backend.settings import ConnectionSettings
from tcl_core.errors import SettingsError

__all__ = ["BACKLOG", "RATE", "LogLimit", "check_address", "connection_limit", "limited_protocol"]

logger = logging.getLogger(__name__)

BACKLOG = 128
"""Connections that the system keeps until they are accepted, and so many are accepted at once."""
_RESERVED_FILES = 128 + BACKLOG
"""Open files for everything but connections: images, downloads, the worker, libraries, and those just accepted."""
RATE = 200
"""Lines of one kind that are logged in a minute."""


def connection_limit(wanted: int) -> int:
    """How many connections there may be: as many as are wanted, and as open files allow.

    More than the system lets a process open would keep everybody out, and fill the log with one line for each try.

    Args:
        wanted: from the settings.
    """
    try:
        import resource
    except ImportError:  # on Windows
        return wanted
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if allowed == resource.RLIM_INFINITY else max(1, min(wanted, allowed - _RESERVED_FILES))


def limited_protocol(settings: ConnectionSettings) -> type[asyncio.Protocol]:
    """Uvicorn's protocol with limits.

    A connection whose request has not come in time is closed. When there are too many, the one that has been silent
    for longest makes way for the new one; when all of them are being answered, the new one is closed. A client that
    does not take its answer is closed, too.

    Args:
        settings: the limits.
    """
    most = connection_limit(settings.max_connections)
    # In the order in which they began to wait.
    silent: dict[LimitedProtocol, None] = {}

    class LimitedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                oldest = next(iter(silent), None)
                if oldest is None:
                    logger.warning("a connection was refused, because all %d connections are in use", most)
                    transport.abort()
                    return
                logger.warning("the longest idle connection was closed, because there are %d connections", most)
                oldest._drop()
            self._wait_for_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._stop_unread()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before and not self.cycle.response_complete:
                self._stop_waiting()

        def on_response_complete(self) -> None:
            self._wait_for_request()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop_unread()
            self._unread = self.loop.call_later(settings.send_seconds, self._drop)

        def resume_writing(self) -> None:
            self._stop_unread()
            super().resume_writing()

        def _wait_for_request(self) -> None:
            self._stop_waiting()
            silent[self] = None
            self._deadline = self.loop.call_later(settings.header_seconds, self._drop)

        def _stop_waiting(self) -> None:
            silent.pop(self, None)
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _stop_unread(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _drop(self) -> None:
            self._stop_waiting()
            # Not counted from now on, though the loop tells of the end a little later.
            self.connections.discard(self)
            self.transport.abort()

    return LimitedProtocol


class LogLimit(logging.Filter):
    """Lets so many lines of one kind pass in a minute, and says how many it left out.

    Args:
        rate: lines of one message, whatever its arguments are.
    """

    def __init__(self, rate: int = RATE) -> None:
        super().__init__()
        self._rate = rate
        self._minute = 0
        self._counts: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        minute = int(record.created // 60)
        if minute != self._minute:
            self._minute, self._counts = minute, {}
        kind = record.name, str(record.msg)[:80]
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count == self._rate:
            record.msg = f"{record.getMessage()} (further lines like this one are left out for up to a minute)"
            record.args = None
        return count <= self._rate


def check_address(host: str, port: int) -> None:
    """Check that a server can listen at an address, before a model is loaded.

    Args:
        host: name or number; a name may stand for several addresses.
        port: the port.

    Raises:
        SettingsError: it cannot.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                if os.name == "posix":
                    # As the server does: connections that have just ended are no hindrance.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen at {host}:{port} ({error.strerror}); if another backend runs there, stop it or choose "
            "another --port"
        ) from error
