"""Images in object storage (``s3://``, ``gs://``): listing, reading, and what is said when that fails.

Credentials are never this module's: the storage's own library finds them as the provider's tools do. Messages name the
address and the kind of error only, because the texts of those libraries may quote requests.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from tcl_core.errors import ImageError, SettingsError

__all__ = ["RemoteFile", "RemoteFolder", "RemoteStatus", "is_remote", "list_remote"]

_EXTRAS = {"s3": "s3", "gs": "gcs"}
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
    "RefreshError",
    "GoogleAuthError",
)
"""Classes of botocore and google-auth, which need not be installed."""


def is_remote(text: str | os.PathLike[str]) -> bool:
    """Whether a text is an address rather than a path.

    >>> is_remote("s3://photos/2026"), is_remote("photos/2026"), is_remote("C:/photos")
    (True, False, False)
    """
    return "://" in os.fspath(text)


@dataclass(frozen=True)
class RemoteStatus:
    """What a listing says about an object.

    Attributes:
        size: bytes.
        modified: nanoseconds since 1970 in whole seconds, because answers of the same storage differ in the rest;
            ``None`` where that is not known.
    """

    size: int
    modified: int | None


@dataclass(frozen=True)
class RemoteFile:
    """An object.

    Attributes:
        folder: what it was listed from.
        name: relative to it.
    """

    folder: RemoteFolder
    name: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    def status(self) -> RemoteStatus:
        """Of the listing if there was one; otherwise the storage is asked.

        Raises:
            ImageError: there is no such object, or the storage refuses.
        """
        return self.folder.listed.get(self.name) or self._asked()

    def read(self, most_bytes: int) -> tuple[bytes, RemoteStatus]:
        """The content, and the status from before it was fetched.

        Args:
            most_bytes: larger objects are not fetched.

        Raises:
            ImageError: there is no such object, it is larger, or the storage refuses.
            SettingsError: the library for this storage is not installed.
        """
        status = self._asked()
        if status.size > most_bytes:
            raise ImageError(
                f"{self.name}: has {status.size:,} bytes, more than an image within the pixel limit needs "
                f"({most_bytes:,}); raise the pixel limit, or leave it out"
            )
        with _one_sentence(self.name):
            content: bytes = _file_system(str(self)).cat_file(str(self))
        return content, status

    def _asked(self) -> RemoteStatus:
        with _one_sentence(self.name):
            found = _file_system(str(self)).info(str(self))
            if found["type"] != "file":
                raise FileNotFoundError
            return _status(found)


@dataclass(frozen=True)
class RemoteFolder:
    """A bucket, or what begins with a prefix in it; ``folder / name`` is a `RemoteFile`.

    Attributes:
        url: ``s3://bucket/prefix``, without a slash at the end.
        listed: status of objects by name, as of a listing; it does not go along to other processes.
    """

    url: str
    listed: Mapping[str, RemoteStatus] = field(default_factory=dict, compare=False, repr=False)

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(self, name)

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[str]]:
        return RemoteFolder, (self.url,)


def list_remote(inputs: Sequence[str], root: str | None = None) -> tuple[RemoteFolder, tuple[str, ...]]:
    """List objects, each once.

    Args:
        inputs: addresses of objects, prefixes or buckets, or patterns such as ``s3://bucket/**/*.jpg``.
        root: address that names are relative to; by default the deepest prefix that holds every input.

    Returns:
        The root, and the names in the order in which a walk through folders would find them: those of a folder before
        those of its sub-folders. Hidden ones, with a part that begins with a dot, are left out of prefixes.

    Raises:
        ImageError: there is nothing at an address, or the storage refuses.
        SettingsError: an address cannot be used, addresses are of several buckets or outside ``root``, or the library
            for this storage is not installed.
    """
    found: dict[str, RemoteStatus] = {}
    anchors: list[str] = []
    for url in inputs:
        anchor, objects = _objects(url)
        anchors.append(anchor)
        found |= {path: status for path, status in objects.items() if path not in found}
    base = _parts(root) if root is not None else _common(anchors)
    outside = next((path for path in found if _parts(path)[: len(base)] != base or _parts(path) == base), None)
    if outside is not None:
        raise SettingsError(f"{outside}: is outside --root {root}; give a prefix that contains every input")
    names = {"/".join(_parts(path)[len(base) :]): status for path, status in found.items()}
    protocol, *rest = base
    return RemoteFolder(f"{protocol}://{'/'.join(rest)}", names), tuple(names)


def _objects(url: str) -> tuple[str, dict[str, RemoteStatus]]:
    """The folder that an input stands for, and its objects by address."""
    protocol, *parts = _parts(url)
    if glob.has_magic(parts[0]):
        raise SettingsError(f"{url}: the name of a bucket cannot be a pattern; name the bucket")
    system = _file_system(url)
    with _one_sentence(url):
        if glob.has_magic(url) and not system.exists(url):
            fixed = parts[: next(place for place, part in enumerate(parts) if glob.has_magic(part))]
            details = system.glob(url, detail=True)
        else:
            fixed = parts
            details = system.find(url, detail=True)
    files = {path: _status(about) for path, about in details.items() if about["type"] == "file"}
    if not files:
        raise ImageError(f"{url}: there is no object at this address; check the bucket, the prefix and the region")
    if list(files) == ["/".join(parts)]:
        return f"{protocol}://{'/'.join(parts[:-1])}", {f"{protocol}://{path}": files[path] for path in files}
    shown = {path: status for path, status in files.items() if not _is_hidden(path.split("/")[len(fixed) :])}
    for path in shown:
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise ImageError(
                f"{protocol}://{path}: has an empty part, or one of dots, which cannot be a file name; rename the "
                "object, or name prefixes that do not contain it"
            )
    ordered = sorted(shown, key=_walk_key)
    return f"{protocol}://{'/'.join(fixed)}", {f"{protocol}://{path}": shown[path] for path in ordered}


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in parts)


def _walk_key(path: str) -> list[tuple[bool, str]]:
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _parts(url: str) -> list[str]:
    """Protocol, bucket, and the parts of the key.

    Raises:
        SettingsError: it is no address that can be read; one that may hold credentials is not repeated.
    """
    protocol, _, path = url.partition("://")
    bucket, *keys = path.rstrip("/").split("/")
    if "@" in bucket or ":" in bucket:
        raise SettingsError(
            f"{protocol}://...: an address must not contain credentials or a port; use the environment variables or "
            "files that the provider's own tools read"
        )
    if protocol not in _EXTRAS:
        raise SettingsError(f"{url}: only s3:// and gs:// addresses can be read; copy the images to a folder")
    if not bucket:
        raise SettingsError(f"{url}: names no bucket; give {protocol}://BUCKET/PREFIX")
    return [protocol, bucket, *keys]


def _common(anchors: Sequence[str]) -> list[str]:
    split = [_parts(anchor) for anchor in anchors]
    if len({tuple(parts[:2]) for parts in split}) > 1:
        raise SettingsError(f"{anchors[0]} and {anchors[-1]}: are different buckets; run the command once per bucket")
    common = os.path.commonprefix([[*parts, ""] for parts in split])
    return [part for part in common if part]


@cache
def _storage(protocol: str) -> Any:
    import fsspec

    try:
        # Listings of a million objects would be kept for nothing.
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError:
        extra = _EXTRAS[protocol]
        raise SettingsError(
            f"{protocol}:// addresses need a library; install it (pip install 'tcl-annotate[{extra}]')"
        ) from None


def _file_system(url: str) -> Any:
    return _storage(_parts(url)[0])


def _status(about: Mapping[str, Any]) -> RemoteStatus:
    time = about.get("LastModified", about.get("mtime", about.get("updated")))
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        time = int(time.replace(tzinfo=time.tzinfo or UTC).timestamp()) * 10**9
    return RemoteStatus(int(about["size"]), time if isinstance(time, int) else None)


@contextmanager
def _one_sentence(shown: str) -> Iterator[None]:
    """Turn whatever a storage's library raises into one sentence."""
    try:
        yield
    except (ImageError, SettingsError):
        raise
    except FileNotFoundError:
        raise ImageError(f"{shown}: there is no such bucket or object; check the address and the region") from None
    except PermissionError:
        raise ImageError(
            f"{shown}: the storage refuses access; check the credentials that this machine has, and what they may read"
        ) from None
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        if any(name in _NO_CREDENTIALS for name in names):
            raise ImageError(
                f"{shown}: this machine has no credentials for the storage; set them up as the provider's own tools "
                "read them, or FSSPEC_S3_ANON=true for a public bucket"
            ) from None
        raise ImageError(
            f"{shown}: cannot be read ({names[0]}); check the network, the address and the endpoint"
        ) from None
