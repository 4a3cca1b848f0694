"""Fetching images as if every address were hostile: limits on where, how much and how long."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import anyio
import httpx

from labelstudio_backend.image_fetch.addresses import Network, resolve
from labelstudio_backend.image_fetch.locations import (
    Inline,
    LocalFile,
    Owner,
    Remote,
    Site,
    cloud_key,
    follow,
    locate,
    origin_of,
    prefix_of,
)
from labelstudio_backend.image_fetch.tokens import REFUSED, Token
from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import ImageError, SettingsError

__all__ = ["FetchLimits", "ImageFetcher", "SignInRefusedError"]

_REDIRECTS = 3
_ALIASES = 64
_READ_AT_ONCE = 1 << 16
_TOKEN_PATH = "/api/token/refresh/"
_SHOWN = 120


class SignInRefusedError(ImageError):
    """Label Studio does not accept the token, so it will give no image."""


@dataclass(frozen=True)
class FetchLimits:
    """How much an image may cost before it is here.

    Attributes:
        max_bytes: largest file.
        seconds: from the first look-up to the last byte.
        allow_addresses: networks that may be asked although they are not public.
    """

    max_bytes: int = 64 << 20
    seconds: float = 30.0
    allow_addresses: tuple[Network, ...] = ()


class ImageFetcher:
    """Gets the bytes of images, and keeps them within a bound. An asynchronous context manager.

    Args:
        site: where images may come from.
        token: for the Label Studio server, and only for it; ``None`` asks without.
        limits: size and time of one image.
        cache_bytes: bound of the images kept.
    """

    def __init__(
        self, site: Site, token: Token | None = None, limits: FetchLimits | None = None, cache_bytes: int = 256 << 20
    ) -> None:
        self.site = site
        self.token = token
        self.limits = limits or FetchLimits()
        self._cache = ByteBoundedCache[str, bytes](cache_bytes, len)
        # Proxies of the environment would look the host up again, and may reach more than we do.
        self._client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=self.limits.seconds,
            # Connections go to addresses, so a cookie jar could not tell two hosts of one address apart.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            # What is compressed could be a thousand times larger than it seems.
            headers={"Accept-Encoding": "identity"},
        )
        self._refreshing = anyio.Lock()

    async def __aenter__(self) -> Self:
        """The fetcher itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._client.aclose()

    def add_alias(self, hostname: str) -> None:
        """Take another address for the Label Studio server's; requests still go to the configured one."""
        try:
            origin = origin_of(hostname)
        except SettingsError:
            return
        if len(self.site.aliases) < _ALIASES and len(self.site.prefixes) < _ALIASES:
            prefixes = self.site.prefixes | {prefix} if (prefix := prefix_of(hostname)) else self.site.prefixes
            self.site = replace(self.site, aliases=self.site.aliases | {origin}, prefixes=prefixes)

    async def fetch(self, url: object, owner: Owner | None = None) -> bytes:
        """Get the encoded bytes of an image.

        Args:
            url: what the task's data says.
            owner: whose image it is, for those in a cloud storage.

        Raises:
            ImageError: it may not be fetched, is too large or too slow, or is not there; the message names it.
        """
        location = locate(url, self.site, self.limits.max_bytes, owner)
        if isinstance(location, Inline):
            return location.data
        if isinstance(location, LocalFile):
            return await anyio.to_thread.run_sync(self._read_file, location.path)
        if (kept := self._cache.get(location.url)) is not None:
            return kept
        try:
            with anyio.fail_after(self.limits.seconds):
                data = await self._download(location)
        except TimeoutError as error:
            raise ImageError(f"{_shown(location.url)}: timed out after {self.limits.seconds:g} seconds") from error
        # A redirect to an address that is none, for one.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise ImageError(f"{_shown(location.url)}: could not be fetched ({type(error).__name__})") from error
        self._cache.put(location.url, data)
        return data

    def _read_file(self, path: Path) -> bytes:
        try:
            # Opening a named pipe would wait for ever.
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ImageError(f"{path.name}: not a file")
                if status.st_size > self.limits.max_bytes:
                    raise ImageError(f"{path.name}: larger than {self.limits.max_bytes} bytes")
                # A file that was replaced or written again differs in one of these, whatever times it was given.
                version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                key = f"{path}\0{version}"
                if (kept := self._cache.get(key)) is None:
                    kept = file.read(self.limits.max_bytes + 1)
                    self._cache.put(key, kept)
                return kept
        except OSError as error:
            raise ImageError(f"{path.name}: the local file cannot be read ({error.strerror})") from error

    async def _download(self, location: Remote) -> bytes:
        place = location
        for _ in range(_REDIRECTS + 1):
            response = await self._ask_signed(place)
            try:
                if response.is_redirect:
                    place = follow(place, response.headers.get("location", ""), self.site)
                    continue
                if response.status_code != httpx.codes.OK:
                    refused = response.status_code == httpx.codes.UNAUTHORIZED and place.is_label_studio
                    kind = SignInRefusedError if refused else ImageError
                    raise kind(f"{_shown(place.url)}: {_explained(response.status_code, place)}")
                return await self._read(response, place.url)
            finally:
                await response.aclose()
        raise ImageError(f"{_shown(location.url)}: redirected more than {_REDIRECTS} times")

    async def _ask_signed(self, location: Remote) -> httpx.Response:
        """Ask with the token where it belongs; a refused access token is renewed once."""
        url = location.url
        if not location.is_label_studio or self.token is None:
            return await self._ask("GET", url, trusted=location.is_label_studio)
        await self._refresh_if_needed()
        response = await self._ask("GET", url, trusted=True, headers=self.token.header())
        if response.status_code == httpx.codes.UNAUTHORIZED and self.token.reject():
            await response.aclose()
            await self._refresh_if_needed()
            response = await self._ask("GET", url, trusted=True, headers=self.token.header())
        return response

    async def _refresh_if_needed(self) -> None:
        async with self._refreshing:
            if self.token is None or not self.token.needs_refresh:
                return
            url = self.site.label_studio + _TOKEN_PATH
            response = await self._ask("POST", url, trusted=True, json={"refresh": self.token.secret})
            try:
                body = await self._read(response, url)
                if response.status_code in REFUSED:
                    raise SignInRefusedError(
                        f"Label Studio refused the personal access token ({response.status_code}), which may have been "
                        "revoked or have expired; create a new one under Account & Settings"
                    )
                if response.status_code != httpx.codes.OK:
                    raise ImageError(f"Label Studio returned no access token ({response.status_code})")
                access = httpx.Response(200, content=body).json().get("access")
            except (ValueError, AttributeError) as error:
                raise ImageError("Label Studio returned no access token for the personal access token") from error
            finally:
                await response.aclose()
            if not isinstance(access, str):
                raise ImageError("Label Studio returned no access token for the personal access token")
            self.token.accept(access)

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        trusted: bool,
        headers: dict[str, str] | None = None,
        json: dict[str, str] | None = None,
    ) -> httpx.Response:
        """One request, to the address that was checked and to no other."""
        scheme, host, port = origin_of(url)
        address = await resolve(host, port, self.limits.allow_addresses, trusted=trusted)
        netloc = urlsplit(url).netloc
        target = httpx.URL(url).copy_with(host=address)
        request = self._client.build_request(
            method, target, headers={**(headers or {}), "Host": netloc}, json=json, extensions={"sni_hostname": host}
        )
        return await self._client.send(request, stream=True)

    async def _read(self, response: httpx.Response, url: str) -> bytes:
        too_large = ImageError(f"{_shown(url)}: larger than {self.limits.max_bytes} bytes")
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.limits.max_bytes:
            raise too_large
        parts: list[bytes] = []
        total = 0
        async for part in response.aiter_bytes(_READ_AT_ONCE):
            total += len(part)
            if total > self.limits.max_bytes:
                raise too_large
            parts.append(part)
        return b"".join(parts)


def _explained(status: int, location: Remote) -> str:
    if location.is_label_studio:
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return f"Label Studio denied access ({status}); give the backend a token with access to the project"
        if cloud_key(location.url) is not None:
            if status == httpx.codes.NOT_FOUND:
                return (
                    "Label Studio cannot resolve it (404): the task is gone, or no source storage of its project has "
                    "this bucket"
                )
            return f"Label Studio could not read it from its storage ({status}); check the storage's keys"
    return f"the server responded with {status}"


def _shown(url: str) -> str:
    """An address fit for a message: queries may hold signatures."""
    if (key := cloud_key(url)) is not None:
        url = key
    bare = url if "/data/local-files" in url else url.partition("?")[0]
    return bare if len(bare) <= _SHOWN else bare[:_SHOWN] + "..."
