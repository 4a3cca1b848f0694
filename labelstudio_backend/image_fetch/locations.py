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

__all__ = ["Inline", "LocalFile", "Origin", "Remote", "Site", "locate", "origin_of"]

Origin = tuple[str, str, int]
"""Scheme, host and port."""

_PORTS = {"http": 80, "https": 443}
_DATA_URL = re.compile(r"data:([\w/+.-]*)((?:;[\w=+.-]+)*),(.*)", re.DOTALL)
_LOCAL_FILES = "/data/local-files"
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
class Site:
    """Where images may come from.

    Attributes:
        label_studio: the server's address as the backend reaches it, without a path's last slash.
        aliases: origins by which its pages and tasks call the same server.
        hosts: further hosts that may be asked, in lower case.
        local_root: folder that ``/data/local-files/`` stands for; ``None`` asks the server for them.
    """

    label_studio: str
    aliases: frozenset[Origin] = frozenset()
    hosts: frozenset[str] = frozenset()
    local_root: Path | None = None

    @property
    def origin(self) -> Origin:
        """Origin of the Label Studio server."""
        return origin_of(self.label_studio)


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
        raise SettingsError(f"{url[:_SHOWN]!r} is not an http or https URL")
    return parts.scheme, parts.hostname.lower(), port or _PORTS[parts.scheme]


def locate(url: object, site: Site, max_bytes: int) -> Inline | LocalFile | Remote:
    """Decide where an image is, without touching it.

    Args:
        url: what the task's data says.
        site: where images may come from.
        max_bytes: largest image inside an address.

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
    absolute = urljoin(site.label_studio + "/", url) if url.startswith("/") and not url.startswith("//") else url
    try:
        origin = origin_of(absolute)
    except SettingsError as error:
        raise ImageError(f"{shown}: only http, https, data and Label Studio URLs can be read") from error
    parts = urlsplit(absolute)
    if parts.username is not None or parts.password is not None:
        raise ImageError(f"{shown}: URLs with a user name or password are refused")
    ours = origin == site.origin or origin in site.aliases
    if ours and parts.path.rstrip("/").endswith(_LOCAL_FILES):
        name = _local_name(parts.query, shown)
        if site.local_root is not None:
            return LocalFile(_below(site.local_root, name, shown))
    if _climbs(parts.path):
        raise ImageError(f"{shown}: the path points outside its folder")
    if ours:
        target = site.label_studio + (absolute[len(_prefix(absolute)) :] or "/")
        return Remote(target, site.origin, is_label_studio=True)
    if origin[1] not in site.hosts:
        raise ImageError(f"{shown}: the host {origin[1]!r} is not in allow_hosts")
    return Remote(absolute, origin, is_label_studio=False)


def _prefix(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


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
