"""The list of known models and of the files they are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from tcl_core.errors import WeightsError
from tcl_core.validation import WholeNumber, checked, validated

__all__ = ["HubFile", "Manifest", "ModelEntry", "RemoteFile", "Suggestion", "load_manifest", "parse_manifest"]

_HUB_ADDRESS = re.compile(
    r"https://huggingface\.co/(?!(?:datasets|spaces|kernels|api)/)([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)"
)


def _http(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http or https URL")
    return value


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("must be a plain file name")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("must be 64 hexadecimal digits or null")
    return value


class HubFile(NamedTuple):
    """A file of a model on the Hugging Face hub, as its library names it."""

    repo: str
    revision: str
    filename: str


@checked("file", WeightsError)
class RemoteFile:
    """A file that can be downloaded.

    Attributes:
        name: key in the manifest.
        filename: under which it is kept in the download folder.
        url: http or https address.
        size: in bytes, ``None`` where it is not known.
        sha256: in hexadecimal, ``None`` where it is not known; the first download is then pinned.
        license: SPDX identifier.
        source: page that describes the file.
        note: why this file and not another.
    """

    name: str
    filename: Annotated[str, AfterValidator(_plain_name)]
    url: Annotated[str, AfterValidator(_http)]
    size: Annotated[WholeNumber, Field(ge=1)] | None
    sha256: Annotated[str, AfterValidator(_sha256)] | None
    license: str
    source: str
    note: str = ""

    @property
    def hub(self) -> HubFile | None:
        """The file on the Hugging Face hub, ``None`` where the address is not that of a model's file there."""
        found = _HUB_ADDRESS.fullmatch(self.url.partition("?")[0])
        return HubFile(*map(unquote, found.groups())) if found else None


@checked("model", WeightsError)
class ModelEntry:
    """A model that can be loaded by name: an asset of the package, or made from downloaded files or one of the user's.

    Attributes:
        name: what the user writes.
        method: registered name of its method.
        description: one line.
        license: SPDX identifier.
        source: where it comes from.
        asset: path inside the package ``tcl_core``, or ``None``.
        checkpoint: the upstream checkpoint it is imported from, or ``None``.
        clip: the frozen CLIP it needs, or ``None`` where the model file holds it.
        by_hand: the checkpoint that users get themselves from ``source`` and import, or ``None``.
    """

    name: str
    method: str
    description: str
    license: str
    source: str
    asset: str | None = None
    checkpoint: RemoteFile | None = None
    clip: RemoteFile | None = None
    by_hand: str | None = None

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Every file that has to be downloaded, in that order."""
        return tuple(file for file in (self.checkpoint, self.clip) if file is not None)


@checked("suggestion", WeightsError)
class Suggestion:
    """A CLIP of open_clip with a method, out of the many that there are.

    Attributes:
        name: what the user writes.
        description: one line.
        license: SPDX identifier of the weights.
        source: their page on the hub.
    """

    name: str
    description: str
    license: str
    source: Annotated[str, AfterValidator(_http)]


@checked("manifest", WeightsError)
class Manifest:
    """Everything that is known by name.

    Attributes:
        files: downloads by name.
        models: models by name.
        clips: downloads of frozen CLIPs by ``(open_clip model, pretrained tag)``.
        suggested: CLIPs of open_clip that lists show; all others can be used too.
    """

    files: Mapping[str, RemoteFile]
    models: Mapping[str, ModelEntry]
    clips: Mapping[tuple[str, str], RemoteFile]
    suggested: tuple[Suggestion, ...] = ()


@cache
def load_manifest() -> Manifest:
    """The manifest of the package.

    >>> sorted(load_manifest().models)
    ['code-vit-b16', 'groupvit-gcc-redcaps', 'groupvit-gcc-yfcc', 'playground', 'tcl-vit-b16']
    """
    text = resources.files("tcl_core.models").joinpath("manifest.json").read_text(encoding="utf-8")
    return parse_manifest(json.loads(text))


def parse_manifest(entry: Mapping[str, Any]) -> Manifest:
    """Check and read a manifest.

    Args:
        entry: ``{"format": 1, "files": {...}, "models": {...}, "clips": {...}}`` as in ``manifest.json``.

    Raises:
        WeightsError: an address is not http(s), a hash, size or file name is not valid, or a reference leads nowhere.
    """
    written = validated(_Written, entry, "manifest", WeightsError)
    files = written.files

    def lookup(name: str | None, where: str) -> RemoteFile | None:
        if name is not None and name not in files:
            raise WeightsError(f"manifest: {where} refers to the file {name!r}, which is not listed")
        return files[name] if name is not None else None

    models = {}
    for name, model in written.models.items():
        references = ("checkpoint", "clip")
        found = {key: lookup(getattr(model, key), f"models.{name}.{key}") for key in references}
        models[name] = ModelEntry(name=name, **{**model.model_dump(), **found})
    clips: dict[tuple[str, str], RemoteFile] = {}
    for key, name in written.clips.items():
        architecture, _, pretrained = key.partition("/")
        file = lookup(name, f"clips.{key}")
        if file is None or not pretrained:
            raise WeightsError(f"manifest: clips.{key} must be 'open_clip model/pretrained tag' with a file")
        clips[architecture, pretrained] = file
    return Manifest(files=files, models=models, clips=clips, suggested=written.suggested)


class _WrittenModel(BaseModel):
    """A model as the manifest has it: files by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    description: str
    license: str
    source: str
    asset: str | None = None
    checkpoint: str | None = None
    clip: str | None = None
    by_hand: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> _WrittenModel:
        if sum(origin is not None for origin in (self.asset, self.checkpoint, self.by_hand)) != 1:
            raise ValueError("needs either an asset or a checkpoint")
        return self


class _Written(BaseModel):
    """The manifest as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    files: dict[str, RemoteFile]
    models: dict[str, _WrittenModel]
    clips: dict[str, str]
    suggested: tuple[Suggestion, ...] = ()

    @field_validator("files", mode="before")
    @classmethod
    def _named(cls, files: Any) -> Any:
        """Name files by their key, and let size and hash be absent."""
        if not isinstance(files, Mapping):
            return files
        unknown = {"size": None, "sha256": None}
        return {
            name: {**unknown, **file, "name": name} if isinstance(file, Mapping) else file
            for name, file in files.items()
        }
