"""From what a task says about its image to where it lies: bytes in the text, a file, or an address to ask."""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, unquote_to_bytes, urljoin, urlsplit

from tcl_core.errors import ImageError, SettingsError

__all__ = ["Inline", "LocalFile", "Origin", "Owner", "Remote", "Site", "cloud_key", "follow", "locate", "origin_of"]

Origin = tuple[str, str, int]
"""Scheme, host and port."""

_PORTS = {"http": 80, "https": 443}
_DATA_URL = re.compile(r"data:([\w/+.-]*)((?:;[\w=+.-]+)*),(.*)", re.DOTALL)
_LOCAL_FILES = "/data/local-files"
_IMAGE_PATH = re.compile(
    # Uploads, the folders of the server, the storages that it reads from, and the images of its templates.
    r"/data/upload/.+|/storage-data/uploaded/?|/data/local-files/?"
    r"|/(?:tasks|projects)/[0-9]+/(?:resolve|presign)/?|/static/samples/.+"
)
"""The paths of Label Studio at which images lie; nothing else is asked for with the token."""
_CLOUD = re.compile(r"(?:s3|gs|azure-blob)://[^/]+/.+", re.DOTALL | re.IGNORECASE)
_MAX_URL = 8192
_SHOWN = 120


@dataclass(frozen=True)
class Inline:
    """An image inside its own address."""

    data: bytes


@dataclass(frozen=True)
class LocalFile:
    """A file below a local root."""

    path: Path


@dataclass(frozen=True)
class Remote:
    """An image to ask a server for.

    Attributes:
        url: absolute.
        origin: of the URL.
        is_label_studio: whether it is the project's own server, which gets the token.
    """

    url: str
    origin: Origin
    is_label_studio: bool


@dataclass(frozen=True)
class Owner:
    """Whose image it is, so that Label Studio can find it in a storage.

    Attributes:
        task: number of the task, if it is known.
        project: number of its project, if it is known.
    """

    task: int | None = None
    project: int | None = None


@dataclass(frozen=True)
class Site:
    """Where images may come from.

    Attributes:
        label_studio: the server's address as the backend reaches it, without a path's last slash.
        aliases: origins by which its pages and tasks call the same server.
        hosts: further hosts that may be asked, in lower case.
        local_root: folder that ``/data/local-files/`` stands for; ``None`` asks the server for them.
        prefixes: paths under which its pages and tasks say that the same server lies, such as ``/label-studio``.
    """

    label_studio: str
    aliases: frozenset[Origin] = frozenset()
    hosts: frozenset[str] = frozenset()
    local_root: Path | None = None
    prefixes: frozenset[str] = frozenset()

    @property
    def origin(self) -> Origin:
        """Origin of the Label Studio server."""
        return origin_of(self.label_studio)

    def is_label_studio(self, origin: Origin) -> bool:
        """Whether an origin is one of the Label Studio server's."""
        return origin == self.origin or origin in self.aliases

    def image_path(self, path: str) -> str | None:
        """The part of a path that names an image of the Label Studio server, without the prefix of the server.

        >>> Site("http://host/label-studio").image_path("/label-studio/data/upload/1/a.png")
        '/data/upload/1/a.png'
        """
        for prefix in ("", prefix_of(self.label_studio), *self.prefixes):
            if path.startswith(prefix) and _IMAGE_PATH.fullmatch(path, len(prefix)):
                return path[len(prefix) :]
        return None


def origin_of(url: str) -> Origin:
    """Scheme, host and port of an absolute address.

    Raises:
        SettingsError: it is not an http or https URL.

    >>> origin_of("http://Example.org/a")
    ('http', 'example.org', 80)
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{url[:_SHOWN]!r} is not a valid URL ({error})") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise SettingsError(f"{url[:_SHOWN]!r} is not an http or https URL, such as http://localhost:8080")
    return parts.scheme, parts.hostname.lower(), port or _PORTS[parts.scheme]


def prefix_of(url: str) -> str:
    """The path under which a server lies, without its last slash; empty where it lies at the root."""
    return urlsplit(url).path.rstrip("/")


def locate(url: object, site: Site, max_bytes: int, owner: Owner | None = None) -> Inline | LocalFile | Remote:
    """Decide where an image is, without touching it.

    Args:
        url: what the task's data says.
        site: where images may come from.
        max_bytes: largest image inside an address.
        owner: whose image it is; needed for those in a cloud storage, which Label Studio resolves for their task.

    Raises:
        ImageError: the address is none, of an unknown kind, or leads to where nothing may be fetched.
    """
    if not isinstance(url, str) or not url.strip():
        raise ImageError(f"the task's image is {str(url)[:_SHOWN]!r}, which is not a URL")
    url = url.strip()
    if url.startswith("data:"):
        return Inline(_decode_data_url(url, max_bytes))
    shown = url[:_SHOWN]
    if len(url) > _MAX_URL or any(ord(character) < 32 for character in url):
        raise ImageError(f"{shown}: the URL is too long or contains a control character")
    if _CLOUD.fullmatch(url):
        return _resolved_by_server(url, site, owner)
    relative = url.startswith("/") and not url.startswith("//")
    # Before anything is joined: a join would carry out the dots that the check looks for.
    if _climbs(urlsplit(url).path if relative else _path_of(url)):
        raise ImageError(f"{shown}: the path points outside its folder")
    if relative:
        return _at_label_studio(url, site, shown)
    try:
        origin = origin_of(url)
    except SettingsError as error:
        raise ImageError(
            f"{shown}: only http, https, data, s3, gs, azure-blob and Label Studio URLs can be read"
        ) from error
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ImageError(f"{shown}: URLs with a user name or password are refused")
    if site.is_label_studio(origin):
        return _at_label_studio(url[len(f"{parts.scheme}://{parts.netloc}") :] or "/", site, shown)
    if origin[1] not in site.hosts:
        raise ImageError(f"{shown}: the host {origin[1]!r} is not in allow_hosts")
    return Remote(url, origin, is_label_studio=False)


def follow(source: Remote, target: str, site: Site) -> Remote:
    """Where a redirect may lead: to what could be asked for directly.

    Args:
        source: the address that redirects.
        target: where to, as the server says it.
        site: where images may come from.

    Raises:
        ImageError: nothing may be fetched there, the redirect gives up encryption, or a foreign server sends us to
            Label Studio, which would answer because of our token.
    """
    joined = urljoin(source.url, target)
    shown = source.url.partition("?")[0][:_SHOWN]
    try:
        found = locate(joined, site, 0)
    except ImageError as error:
        raise ImageError(
            f"{shown}: the server redirects to another place, which is refused ({_bare(error)})"
        ) from error
    same = isinstance(found, Remote) and found.origin == source.origin
    if not isinstance(found, Remote) or (found.is_label_studio and not source.is_label_studio):
        raise ImageError(f"{shown}: the server redirects to Label Studio or to a file, which is refused")
    if source.origin[0] == "https" and found.origin[0] != "https" and not same:
        raise ImageError(f"{shown}: the server redirects from https to http, which is refused")
    return found


def cloud_key(url: str) -> str | None:
    """The address in a cloud storage that an address of Label Studio stands for; ``None`` if it stands for none.

    >>> cloud_key("/tasks/5/resolve/?fileuri=czM6Ly9iL2EucG5n")
    's3://b/a.png'
    """
    if _CLOUD.fullmatch(url):
        return url
    names = parse_qs(urlsplit(url).query).get("fileuri", [])
    if len(names) != 1:
        return None
    try:
        decoded = base64.urlsafe_b64decode(names[0].encode("ascii")).decode("utf-8")
    except ValueError:
        return None
    return decoded if _CLOUD.fullmatch(decoded) else None


def _resolved_by_server(url: str, site: Site, owner: Owner | None) -> Remote:
    shown = url[:_SHOWN]
    whose = owner or Owner()
    if whose.task is not None:
        place = f"tasks/{whose.task}"
    elif whose.project is not None:
        place = f"projects/{whose.project}"
    else:
        raise ImageError(f"{shown}: the task's number is unknown, without which Label Studio cannot find the file")
    name = base64.urlsafe_b64encode(url.encode("utf-8")).decode("ascii")
    return Remote(f"{site.label_studio}/{place}/resolve/?fileuri={name}", site.origin, is_label_studio=True)


def _at_label_studio(path: str, site: Site, shown: str) -> LocalFile | Remote:
    """An image of the Label Studio server.

    Args:
        path: path and query, with or without the prefix of the server.
        site: where images may come from.
        shown: the address for messages.
    """
    parts = urlsplit(path)
    bare = site.image_path(parts.path)
    if bare is None:
        raise ImageError(f"{shown}: Label Studio has no images at this path")
    if bare.rstrip("/") == _LOCAL_FILES:
        name = _local_name(parts.query, shown)
        if site.local_root is not None:
            return LocalFile(_below(site.local_root, name, shown))
    if any(_climbs(value) for values in parse_qs(parts.query).values() for value in values):
        raise ImageError(f"{shown}: the path points outside its folder")
    query = f"?{parts.query}" if parts.query else ""
    return Remote(f"{site.label_studio}{bare}{query}", site.origin, is_label_studio=True)


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _bare(error: ImageError) -> str:
    """A message without the address that it begins with, whose query may hold a signature."""
    return str(error).rpartition(": ")[2]


def _decode_data_url(url: str, max_bytes: int) -> bytes:
    if len(url) > 2 * max_bytes + 1024:
        raise ImageError(f"the image in the data URL is larger than {max_bytes} bytes")
    match = _DATA_URL.fullmatch(url)
    if match is None:
        raise ImageError(f"{url[:40]}...: the data URL cannot be read")
    try:
        if ";base64" in match.group(2).lower():
            data = base64.b64decode(unquote(match.group(3)), validate=True)
        else:
            data = unquote_to_bytes(match.group(3))
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{url[:40]}...: the data URL is not valid base64 ({error})") from error
    if len(data) > max_bytes:
        raise ImageError(f"the image in the data URL is larger than {max_bytes} bytes")
    return data


def _local_name(query: str, shown: str) -> str:
    names = parse_qs(query).get("d", [])
    if len(names) != 1:
        raise ImageError(f"{shown}: the URL must name exactly one local file")
    if _climbs(names[0]) or "\0" in names[0] or names[0].startswith(("/", "\\")):
        raise ImageError(f"{shown}: the path points outside its folder")
    return names[0]


def _climbs(path: str) -> bool:
    """Whether a path, decoded as often as it is encoded, has a part that leads upwards."""
    for _ in range(8):
        if ".." in path.replace("\\", "/").split("/"):
            return True
        decoded = unquote(path)
        if decoded == path:
            return False
        path = decoded
    return True


def _below(root: Path, name: str, shown: str) -> Path:
    real_root = os.path.realpath(root)
    path = os.path.realpath(os.path.join(real_root, name))
    # Links are followed before the comparison: one that leads outside is as good as "..".
    if path == real_root or os.path.commonpath([path, real_root]) != real_root:
        raise ImageError(f"{shown}: the path points outside the folder of local files")
    return Path(path)
