"""The bytes of one file: from the Hugging Face hub, from another web server, or from a mirror folder.

huggingface_hub continues interrupted downloads, pooch reads any web server. What they raise ends here: callers see
:class:`~tcl_core.models.reasons.TransferError`, and :class:`~tcl_core.errors.WeightsError` where the disk is at fault.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils import logging as hub_logging
from pooch import HTTPDownloader

import tcl_core
from tcl_core.models.manifest import HubFile
from tcl_core.models.paths import file_sha256
from tcl_core.models.reasons import BUSY, TransferError, translated
from tcl_core.models.transfer_progress import TransferProgress, bar_class

__all__ = ["copy_file", "from_hub", "from_web"]

_CHUNK = 1 << 16
_HUB_BLOCK = 1 << 15
# The switches of huggingface_hub that are set below are those of the process.
_HUB = threading.Lock()


def from_hub(file: HubFile, part: Path, staging: Path, *, progress: TransferProgress = True) -> None:
    """Fetch a file of the hub, continuing with what an earlier call received.

    Since version 1.18 of the library ``hf_hub_download`` keeps nothing of a download that failed; the functions that it
    is made of take a part that we keep. They read plain HTTP, also where the hub would offer Xet.

    Args:
        file: what to get; ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean to the library.
        part: where the whole file is put.
        staging: folder for the beginning of the file; removed when the file is whole.
        progress: see `TransferProgress`.

    Raises:
        TransferError: the hub refuses, is not a hub, cannot be reached, or sends other bytes than it announced.
        WeightsError: the disk is full, or the folder cannot be written.
    """
    beginning, size = None, None
    try:
        with _HUB, _discreet(), _small_blocks(not isinstance(progress, bool)):
            # The library reads the variable when it is imported, which may be before a program sets it.
            endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
            headers = build_hf_headers(library_name="tcl-annotate", library_version=tcl_core.__version__)
            headers["Accept-Encoding"] = "identity"
            found = _metadata(file, headers, endpoint)
            if found.commit_hash is None or found.etag is None:
                raise TransferError(
                    f"{endpoint or constants.ENDPOINT} does not respond like a Hugging Face hub (a login or proxy "
                    "page, or HF_ENDPOINT points to another kind of server)"
                )
            size = found.size
            beginning = _beginning(staging, found)
            with open(beginning, "ab") as handle:
                http_get(
                    # The very commit that was asked about, whatever the branch points to by now.
                    hf_hub_url(file.repo, file.filename, revision=found.commit_hash, endpoint=endpoint),
                    handle,
                    resume_size=handle.tell(),
                    headers=headers,
                    expected_size=size,
                    displayed_filename=part.name.removesuffix(".part"),
                    tqdm_class=bar_class(progress),
                )
        # The hub's ETag of a large file is its SHA-256.
        if re.fullmatch("[0-9a-f]{64}", found.etag) and file_sha256(beginning) != found.etag:
            beginning.unlink()
            raise TransferError(
                "the downloaded file does not match the SHA-256 that the hub announced; run the command again"
            )
        os.replace(beginning, part)
        shutil.rmtree(staging, ignore_errors=True)
    except TransferError:
        raise
    # The library has changed its HTTP client twice so far, and each has errors of several families.
    except Exception as error:
        kept = beginning.stat().st_size if beginning is not None and beginning.exists() else None
        raise translated(error, part, size, kept) from error


def from_web(url: str, part: Path, *, size: int | None = None, progress: TransferProgress = True) -> None:
    """Fetch a file from any web server, from its first byte on.

    Args:
        url: http or https address.
        part: where the file is put.
        size: expected number of bytes, ``None`` where it is not known.
        progress: see `TransferProgress`.

    Raises:
        TransferError: the server refuses, answers with a page instead of the file, redirects from https to something
            else, cannot be reached, or ends too early.
        WeightsError: the disk is full, or the folder cannot be written.
    """
    announced: list[int] = []

    def check(response: requests.Response, *_: Any, **__: Any) -> None:
        try:
            _check_response(response, size)
        except TransferError:
            response.close()
            raise
        if not response.is_redirect and response.headers.get("Content-Length", "").isdigit():
            announced[:] = [int(response.headers["Content-Length"])]

    try:
        with bar_class(progress)(desc=part.name.removesuffix(".part"), unit="B", unit_scale=True) as bar:
            download = HTTPDownloader(
                progressbar=bar,
                chunk_size=_CHUNK,
                timeout=30,
                headers={"User-Agent": f"tcl-annotate/{tcl_core.__version__}", "Accept-Encoding": "identity"},
                hooks={"response": check},
            )
            download(url, str(part), None)
        # urllib3 1.26 does not notice that a connection ends early.
        if announced and part.stat().st_size != announced[0]:
            raise EOFError
    except (requests.RequestException, OSError, ValueError, EOFError) as error:
        raise translated(error, part, announced[0] if announced else None) from error


def copy_file(source: Path, part: Path, *, progress: TransferProgress = True) -> None:
    """Copy a file of a mirror folder.

    Raises:
        TransferError: the source cannot be read.
        WeightsError: the disk is full, or the folder cannot be written.
    """
    try:
        reader, total = open(source, "rb"), source.stat().st_size
    except OSError as error:
        raise TransferError(f"{source}: {error.strerror}", missing=isinstance(error, FileNotFoundError)) from error
    try:
        with (
            reader,
            open(part, "wb") as writer,
            bar_class(progress)(total=total, desc=source.name, unit="B", unit_scale=True) as bar,
        ):
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise translated(error, part) from error


def _metadata(file: HubFile, headers: dict[str, str], endpoint: str | None) -> HfFileMetadata:
    url = hf_hub_url(file.repo, file.filename, revision=file.revision, endpoint=endpoint)
    try:
        return get_hf_file_metadata(url, headers=headers, endpoint=endpoint)
    except HfHubHTTPError as error:
        if error.response.status_code not in BUSY:
            raise
    # Patience with a busy hub only: nobody waits half a minute to read that there is no network.
    return get_hf_file_metadata(url, headers=headers, endpoint=endpoint, retry_on_errors=True)


def _beginning(staging: Path, found: HfFileMetadata) -> Path:
    """The file that grows, named after the version that it is the beginning of; those of others are removed."""
    staging.mkdir(exist_ok=True)
    beginning = staging / hashlib.sha256(str(found.etag).encode()).hexdigest()[:16]
    for path in staging.iterdir():
        if path != beginning or path.stat().st_size > (found.size or 0):
            path.unlink()
    return beginning


@contextmanager
def _discreet() -> Iterator[None]:
    """No telemetry, for which the library would ask the hub for more than the file, and no warnings of its own."""
    telemetry, level = constants.HF_HUB_DISABLE_TELEMETRY, hub_logging.get_verbosity()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    # Whoever asked the library to say more is still told more.
    if level == logging.WARNING:
        hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        hub_logging.set_verbosity(level)


@contextmanager
def _small_blocks(wanted: bool) -> Iterator[None]:
    """Let whoever is told of a download hear of less than the library's 10 MB, so that it can end on a slow line."""
    before = constants.DOWNLOAD_CHUNK_SIZE
    if wanted:
        constants.DOWNLOAD_CHUNK_SIZE = _HUB_BLOCK
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before


def _check_response(response: requests.Response, size: int | None) -> None:
    if response.is_redirect:
        target = urljoin(response.url, response.headers["Location"])
        allowed = ("https://",) if response.url.lower().startswith("https://") else ("https://", "http://")
        if not target.lower().startswith(allowed):
            raise TransferError(f"the server redirects to {target}, which is not {' or '.join(allowed)}")
    elif response.ok:
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise TransferError("the server returned a web page instead of the file (moved, or a login or proxy page)")
        length = response.headers.get("Content-Length", "")
        if size is not None and length.isdigit() and int(length) != size:
            raise TransferError(f"the file on the server has {length} bytes, but {size} are expected")
