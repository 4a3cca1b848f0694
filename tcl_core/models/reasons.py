"""Why a download failed, in words that say what to do; the libraries' own run over several lines."""

from __future__ import annotations

import errno
import shutil
import socket
import ssl
from http import HTTPStatus
from pathlib import Path

from huggingface_hub.errors import OfflineModeIsEnabled

from tcl_core.errors import WeightsError

__all__ = ["BUSY", "TransferError", "translated"]

BUSY = (429, 500, 502, 503, 504)


class TransferError(Exception):
    """The bytes could not be had; the message is the reason, without file or address.

    Attributes:
        missing: whether the server answered that there is no such file.
    """

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def translated(
    error: Exception, part: Path, total: int | None = None, kept: int | None = None
) -> TransferError | WeightsError:
    """What a user can understand of an error of a library or of the disk.

    Args:
        error: as huggingface_hub, requests or a file raised it.
        part: file that was being written.
        total: bytes that the server announced, ``None`` if it did not answer or did not say.
        kept: bytes that the next call continues with, ``None`` where it starts anew.
    """
    response = getattr(error, "response", None)
    # Too many redirects come with the last of them.
    if response is not None and response.status_code >= HTTPStatus.BAD_REQUEST:
        missing = response.status_code == HTTPStatus.NOT_FOUND
        return TransferError(_refusal(response.status_code), missing=missing)
    if isinstance(error, OfflineModeIsEnabled):
        return TransferError("huggingface_hub is in offline mode; unset HF_HUB_OFFLINE to download the file")
    # Errors of the network have no number of their own; that of the system lies below them.
    if isinstance(error, OSError) and error.errno and error.strerror:
        free = f" ({shutil.disk_usage(part.parent).free / 1e6:.0f} MB are free)" if part.parent.is_dir() else ""
        return WeightsError(
            f"{error.filename or part}: cannot be written: {error.strerror}{free}; free some space, or set "
            f"TCL_ANNOTATE_HOME to another folder{'; the download resumes' if kept else ''}"
        )
    if total is not None and (kept or 0) > total:
        return TransferError(f"the server sent more than the {total} bytes that it announced")
    if total is not None and kept:
        return TransferError(
            f"the connection ended after {kept} of {total} bytes; they are kept; run the command again to continue"
        )
    if total is not None:
        return TransferError(f"the connection ended before all {total} bytes arrived; run the command again")
    cause: BaseException | None = error
    while cause is not None:
        unreachable = isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        if unreachable or isinstance(cause, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
            return TransferError(f"no connection: {getattr(cause, 'strerror', None) or cause or type(cause).__name__}")
        cause = cause.__cause__ or cause.__context__
    return TransferError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _refusal(status: int) -> str:
    try:
        answer = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        answer = str(status)
    remedy = ""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        remedy = (
            "; if it is gated or private on the Hugging Face hub, accept its terms there and set HF_TOKEN to a token "
            "that may read it"
        )
    elif status in BUSY:
        remedy = "; try again later"
    return f"the server answered {answer}{remedy}"
