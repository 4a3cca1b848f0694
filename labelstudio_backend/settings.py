"""Settings of the server, from a file and from options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    model_validator,
)

from labelstudio_backend.image_fetch.addresses import parse_networks
from labelstudio_backend.image_fetch.fetching import FetchLimits, ImageFetcher
from labelstudio_backend.image_fetch.locations import Site, origin_of, prefix_of
from labelstudio_backend.image_fetch.tokens import Token
from labelstudio_backend.model_options import ModelOptions
from tcl_core.errors import SettingsError
from tcl_core.validation import FiniteNumber, StrictFields, WholeNumber, checked, explain

__all__ = [
    "ConnectionSettings",
    "ImageSettings",
    "ServerSettings",
    "default_state_dir",
    "merged_settings",
    "read_settings_file",
    "settings_from",
    "settings_from_environment",
]

_PREFIX = "TCL_BACKEND__"
DEFAULT_URL = "http://localhost:8080"
MAX_PIXELS = 64_000_000
"""Largest image that the server takes unless its settings say otherwise: about ten seconds of a small CPU."""


def default_state_dir() -> Path:
    """Where typed prompts are kept: ``label-studio`` in the folder of downloaded models."""
    from tcl_core.models.paths import home_folder

    return home_folder() / "label-studio"


def _expanded(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) else value


def _without_end(url: str) -> str:
    return url.rstrip("/")


def _as_written(value: Any, check: Callable[[Any], ModelOptions]) -> ModelOptions:
    """Check a mapping of options, but keep 2 where 2.0 would do: the model's version is made from what is written."""
    options = check(value)
    return ModelOptions(**value) if isinstance(value, Mapping) else options


_Folder = Annotated[Path, BeforeValidator(_expanded)]
_Count = Annotated[WholeNumber, Field(gt=0)]
_Seconds = Annotated[FiniteNumber, Field(gt=0)]


@checked("images", SettingsError)
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

    label_studio_url: Annotated[str, AfterValidator(_without_end)] = DEFAULT_URL
    label_studio_aliases: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    allow_addresses: tuple[str, ...] = ()
    local_root: _Folder | None = None
    max_bytes: _Count = 64 << 20
    seconds: _Seconds = 30.0
    cache_bytes: WholeNumber = 256 << 20

    @model_validator(mode="after")
    def _can_be_used(self) -> ImageSettings:
        for url in (self.label_studio_url, *self.label_studio_aliases):
            origin_of(url)
        parse_networks(self.allow_addresses)
        if self.local_root is not None and not self.local_root.is_dir():
            raise SettingsError(f"local_root {self.local_root}: is not a folder")
        return self

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
            frozenset(filter(None, map(prefix_of, self.label_studio_aliases))),
        )
        limits = FetchLimits(self.max_bytes, self.seconds, parse_networks(self.allow_addresses))
        return ImageFetcher(site, Token(token) if token else None, limits, self.cache_bytes)


@checked("connections", SettingsError)
class ConnectionSettings:
    """What clients may cost before they are heard.

    Attributes:
        max_connections: most connections at a time; fewer where the system allows fewer open files.
        header_seconds: until a request's headers are complete, from the connection or the last answer on.
        body_seconds: until a request's body is complete.
        send_seconds: longest pause in which a client takes nothing of its answer.
        max_bodies_bytes: most of all requests together that is held in memory.

    Raises:
        SettingsError: a value is out of range or of the wrong form.
    """

    max_connections: _Count = 512
    header_seconds: _Seconds = 10.0
    body_seconds: _Seconds = 60.0
    send_seconds: _Seconds = 30.0
    max_bodies_bytes: _Count = 512 << 20


@checked("settings", SettingsError)
class ServerSettings:
    """Settings of the server.

    Attributes:
        model: the model and how regions are drawn.
        images: where images may come from.
        connections: what clients may cost before they are heard.
        state_dir: folder for typed prompts.
        credentials: ``name:password`` pairs that may use the server; none lets everybody in.
        token: Label Studio's token for images.
        queue: most requests that are worked on or wait; one more is refused.
        workers: processes that each hold the model, for a machine whose GPU or memory has room for several.
        feature_cache_bytes: bound of what the model keeps of images.
        result_cache_bytes: bound of default predictions kept for a repeated batch.
        job_seconds: longest time for one image.
        max_body_bytes: largest request.
        max_names: most labels and prompts of a labeling configuration.
        remember_prompts: whether prompts that annotators type are kept for the next images; otherwise they are only
            answered.
    """

    model: Annotated[ModelOptions, StrictFields(), WrapValidator(_as_written)] = field(
        default_factory=lambda: ModelOptions(max_pixels=MAX_PIXELS)
    )
    images: ImageSettings = field(default_factory=ImageSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    state_dir: _Folder = field(default_factory=default_state_dir)
    credentials: tuple[str, ...] = ()
    token: str | None = None
    queue: _Count = 16
    workers: _Count = 1
    feature_cache_bytes: WholeNumber = 1 << 30
    result_cache_bytes: WholeNumber = 256 << 20
    job_seconds: _Seconds = 300.0
    max_body_bytes: _Count = 256 << 20
    max_names: _Count = 1000
    remember_prompts: bool = True


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read a settings file: YAML with the fields of `ServerSettings`, ``model`` and ``images`` being mappings.

    Returns:
        Arguments for :func:`settings_from`, which checks them.

    Raises:
        SettingsError: it cannot be read, is no mapping, or holds a secret.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: the settings cannot be read ({' '.join(str(error).split())})") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected a mapping of settings")
    _refuse_secrets(data, str(path))
    return data


def settings_from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings in variables such as ``TCL_BACKEND__QUEUE=32`` or ``TCL_BACKEND__IMAGES__SECONDS=60``.

    Args:
        environment: all variables; the others are passed over.

    Returns:
        The same as :func:`read_settings_file`; values are read as in the file.

    Raises:
        SettingsError: a value is not valid YAML, a setting is below one that is no section, or is a secret.

    Example:
        >>> settings_from_environment({"TCL_BACKEND__MODEL__MIN_AREA": "64", "HOME": "/"})
        {'model': {'min_area': 64}}
    """
    found: dict[str, Any] = {}
    for name, text in sorted(environment.items()):
        if not name.startswith(_PREFIX):
            continue
        *sections, key = name.removeprefix(_PREFIX).lower().split("__")
        place = found
        try:
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = yaml.safe_load(text)
        except (yaml.YAMLError, TypeError, AttributeError) as error:
            raise SettingsError(f"{name}: cannot be read ({' '.join(str(error).split())})") from error
    _refuse_secrets(found, "the environment")
    return found


def _refuse_secrets(data: Mapping[str, Any], where: str) -> None:
    for forbidden in ("credentials", "token"):
        if forbidden in data:
            raise SettingsError(f"{where}: {forbidden} is not allowed there; use --auth-file and --token-file")


def merged_settings(file: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file, with those of the environment in their place, section by section."""
    result = dict(file)
    for key, value in environment.items():
        mine = result.get(key)
        both = isinstance(mine, Mapping) and isinstance(value, Mapping)
        result[key] = merged_settings(mine, value) if both else value  # type: ignore[arg-type]
    return result


def settings_from(
    data: Mapping[str, Any], model: Mapping[str, Any], images: Mapping[str, Any], file: Path | None = None
) -> ServerSettings:
    """Put settings together; options (where not ``None``) come before the file.

    Args:
        data: from `read_settings_file`, and top-level options.
        model: options of `ModelOptions`.
        images: options of `ImageSettings`.
        file: where `data` was read from; it begins the messages.

    Raises:
        SettingsError: a setting is unknown, out of range or of the wrong type; the message names it.
    """
    top = {key: value for key, value in data.items() if value is not None}
    what = "settings" if file is None else str(file)
    chosen = _merged(top.get("model"), model)
    if isinstance(chosen, Mapping):
        chosen = {"max_pixels": MAX_PIXELS, **chosen}
    try:
        return _SETTINGS.validate_python({**top, "model": chosen, "images": _merged(top.get("images"), images)})
    except ValidationError as error:
        raise SettingsError(explain(error, what, ServerSettings)) from None


_SETTINGS: TypeAdapter[ServerSettings] = TypeAdapter(ServerSettings)


def _merged(file: Any, options: Mapping[str, Any]) -> Any:
    if not isinstance(file, Mapping | None):
        return file
    return {**(file or {}), **{key: value for key, value in options.items() if value not in (None, ())}}
