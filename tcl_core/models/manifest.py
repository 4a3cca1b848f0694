"""The list of known models and of the files they are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from tcl_core.errors import WeightsError

__all__ = ["Manifest", "ModelEntry", "RemoteFile", "load_manifest", "parse_manifest"]

_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
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
    filename: str
    url: str
    size: int | None
    sha256: str | None
    license: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be loaded by name: an asset of the package, or made from downloaded files.

    Attributes:
        name: what the user writes.
        method: registered name of its method.
        description: one line.
        license: SPDX identifier.
        source: where it comes from.
        asset: path inside the package ``tcl_core``, or ``None``.
        checkpoint: the upstream checkpoint it is imported from, or ``None``.
        clip: the frozen CLIP it needs, or ``None`` where the model file holds it.
    """

    name: str
    method: str
    description: str
    license: str
    source: str
    asset: str | None = None
    checkpoint: RemoteFile | None = None
    clip: RemoteFile | None = None

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Every file that has to be downloaded, in that order."""
        return tuple(file for file in (self.checkpoint, self.clip) if file is not None)


@dataclass(frozen=True)
class Manifest:
    """Everything that is known by name.

    Attributes:
        files: downloads by name.
        models: models by name.
        clips: downloads of frozen CLIPs by ``(open_clip model, pretrained tag)``.
    """

    files: Mapping[str, RemoteFile]
    models: Mapping[str, ModelEntry]
    clips: Mapping[tuple[str, str], RemoteFile]


@cache
def load_manifest() -> Manifest:
    """The manifest of the package.

    >>> sorted(load_manifest().models)
    ['playground', 'tcl-vit-b16']
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
    if entry.get("format") != 1:
        raise WeightsError(f"manifest: format must be 1, not {entry.get('format')!r}")
    files = {name: _remote_file(name, value) for name, value in entry["files"].items()}

    def lookup(name: str | None, where: str) -> RemoteFile | None:
        if name is not None and name not in files:
            raise WeightsError(f"manifest: {where} refers to the file {name!r}, which is not listed")
        return files[name] if name is not None else None

    models = {}
    for name, value in entry["models"].items():
        checkpoint, clip = (lookup(value.get(key), f"models.{name}.{key}") for key in ("checkpoint", "clip"))
        if (value.get("asset") is None) == (checkpoint is None):
            raise WeightsError(f"manifest: models.{name} needs either an asset or a checkpoint")
        models[name] = ModelEntry(
            name=name,
            method=value["method"],
            description=value["description"],
            license=value["license"],
            source=value["source"],
            asset=value.get("asset"),
            checkpoint=checkpoint,
            clip=clip,
        )
    clips: dict[tuple[str, str], RemoteFile] = {}
    for key, name in entry["clips"].items():
        model, _, pretrained = key.partition("/")
        file = lookup(name, f"clips.{key}")
        if file is None or not pretrained:
            raise WeightsError(f"manifest: clips.{key} must be 'open_clip model/pretrained tag' with a file")
        clips[model, pretrained] = file
    return Manifest(files=files, models=models, clips=clips)


def _remote_file(name: str, value: Mapping[str, Any]) -> RemoteFile:
    where = f"manifest: files.{name}"
    url, size, sha256, filename = value["url"], value.get("size"), value.get("sha256"), value["filename"]
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WeightsError(f"{where}.url must be an http or https address, not {url!r}")
    if not _FILENAME.fullmatch(filename):
        raise WeightsError(f"{where}.filename must be a plain file name, not {filename!r}")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise WeightsError(f"{where}.size must be a number of bytes or null, not {size!r}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise WeightsError(f"{where}.sha256 must be 64 hexadecimal digits or null, not {sha256!r}")
    return RemoteFile(
        name=name,
        filename=filename,
        url=url,
        size=size,
        sha256=sha256,
        license=value["license"],
        source=value["source"],
        note=value.get("note", ""),
    )
