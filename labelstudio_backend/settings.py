"""Settings of the server, from a file and from options."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from labelstudio_backend.image_fetch.addresses import parse_networks
from labelstudio_backend.image_fetch.fetching import FetchLimits, ImageFetcher
from labelstudio_backend.image_fetch.locations import Site, origin_of
from labelstudio_backend.image_fetch.tokens import Token
from labelstudio_backend.model_options import ModelOptions
from tcl_core.errors import SettingsError

__all__ = ["ImageSettings", "ServerSettings", "default_state_dir", "read_settings_file", "settings_from"]

DEFAULT_URL = "http://localhost:8080"


def default_state_dir() -> Path:
    """Where typed prompts are kept: ``label-studio`` in the folder of downloaded models."""
    from tcl_core.models.paths import home_folder

    return home_folder() / "label-studio"


@dataclass(frozen=True)
class ImageSettings:
    """Where images may come from, and what they may cost.

    Attributes:
        label_studio_url: the server, as this machine reaches it.
        label_studio_aliases: other addresses of the same server in tasks, such as the one that browsers use.
        allow_hosts: further hosts that may be asked for images.
        allow_addresses: networks that may be asked although they are not public, such as ``10.0.0.0/8``.
        local_root: folder that ``/data/local-files/`` stands for, to read it directly.
        max_bytes: largest file.
        seconds: longest download.
        cache_bytes: bound of the files kept.

    Raises:
        SettingsError: a value is out of range or of the wrong form.
    """

    label_studio_url: str = DEFAULT_URL
    label_studio_aliases: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    allow_addresses: tuple[str, ...] = ()
    local_root: Path | None = None
    max_bytes: int = 64 << 20
    seconds: float = 30.0
    cache_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_studio_url", self.label_studio_url.rstrip("/"))
        for url in (self.label_studio_url, *self.label_studio_aliases):
            origin_of(url)
        parse_networks(self.allow_addresses)
        if self.local_root is not None and not self.local_root.is_dir():
            raise SettingsError(f"local_root {self.local_root}: is not a folder")
        for name in ("max_bytes", "seconds"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; give a number above 0")

    def fetcher(self, token: str | None) -> ImageFetcher:
        """A fetcher with these limits.

        Args:
            token: Label Studio's, sent to its server alone; ``None`` asks without.
        """
        site = Site(
            self.label_studio_url,
            frozenset(origin_of(url) for url in self.label_studio_aliases),
            frozenset(host.strip().lower() for host in self.allow_hosts),
            self.local_root,
        )
        limits = FetchLimits(self.max_bytes, self.seconds, parse_networks(self.allow_addresses))
        return ImageFetcher(site, Token(token) if token else None, limits, self.cache_bytes)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server.

    Attributes:
        model: the model and how regions are drawn.
        images: where images may come from.
        state_dir: folder for typed prompts.
        credentials: ``name:password`` pairs that may use the server; none lets everybody in.
        token: Label Studio's token for images.
        queue: most requests that are worked on or wait; one more is refused.
        feature_cache_bytes: bound of what the model keeps of images.
        result_cache_bytes: bound of default predictions kept for a repeated batch.
        job_seconds: longest time for one image.
        max_body_bytes: largest request.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    images: ImageSettings = field(default_factory=ImageSettings)
    state_dir: Path = field(default_factory=default_state_dir)
    credentials: tuple[str, ...] = ()
    token: str | None = None
    queue: int = 16
    feature_cache_bytes: int = 1 << 30
    result_cache_bytes: int = 256 << 20
    job_seconds: float = 300.0
    max_body_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name in ("queue", "job_seconds", "max_body_bytes"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; give a number above 0")


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read a settings file: YAML with the fields of `ServerSettings`, ``model`` and ``images`` being mappings.

    Returns:
        Arguments for :func:`settings_from`.

    Raises:
        SettingsError: it cannot be read, or holds an unknown key; the message names it.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: the settings cannot be read ({' '.join(str(error).split())})") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected a mapping of settings")
    for forbidden in ("credentials", "token"):
        if forbidden in data:
            raise SettingsError(f"{path}: {forbidden} does not belong here; use --auth-file and --token-file")
    _check_keys(data, ServerSettings, str(path))
    for section, kind in (("model", ModelOptions), ("images", ImageSettings)):
        if section in data:
            if not isinstance(data[section], dict):
                raise SettingsError(f"{path}: {section} must be a mapping")
            _check_keys(data[section], kind, f"{path}: {section}")
    return data


def settings_from(data: Mapping[str, Any], model: Mapping[str, Any], images: Mapping[str, Any]) -> ServerSettings:
    """Put settings together; options (where not ``None``) come before the file.

    Args:
        data: from `read_settings_file`, and top-level options.
        model: options of `ModelOptions`.
        images: options of `ImageSettings`.

    Raises:
        SettingsError: a value is out of range or of the wrong type.
    """
    top = {key: value for key, value in data.items() if key not in ("model", "images") and value is not None}
    try:
        return ServerSettings(
            model=ModelOptions(**_merged(data.get("model"), model)),
            images=ImageSettings(**_typed(_merged(data.get("images"), images))),
            **_typed(top),
        )
    except TypeError as error:
        raise SettingsError(f"a setting has the wrong type ({error})") from error


def _merged(file: Mapping[str, Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**(file or {}), **{key: value for key, value in options.items() if value not in (None, ())}}


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("local_root", "state_dir"):
        if isinstance(values.get(name), str):
            values[name] = Path(os.path.expanduser(values[name]))
    for name in ("label_studio_aliases", "allow_hosts", "allow_addresses"):
        if name in values:
            if isinstance(values[name], str) or not all(isinstance(text, str) for text in values[name]):
                raise SettingsError(f"{name}: expected a list of texts")
            values[name] = tuple(values[name])
    return values


def _check_keys(data: Mapping[Any, Any], kind: type, where: str) -> None:
    known = [entry.name for entry in dataclasses.fields(kind)]
    for key in data:
        if key not in known:
            raise SettingsError(f"{where}: unknown setting {key!r}; the settings are {', '.join(known)}")
