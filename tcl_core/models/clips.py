"""Any CLIP of open_clip as a model: finding, fetching and reading it by a name such as ViT-B-16-quickgelu/openai."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcl_core.errors import WeightsError
from tcl_core.models.download import NotPublishedError, check_file, fetch_file
from tcl_core.models.manifest import RemoteFile, load_manifest
from tcl_core.models.paths import download_folder, file_sha256
from tcl_core.models.transfer_progress import TransferProgress
from tcl_core.segmentation.preprocess import Preprocess

__all__ = ["ClipName", "FoundClip", "check_clip", "clip_name", "clip_preprocess", "clip_tokenizer_file", "find_clip"]

_log = logging.getLogger(__name__)

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_LONG_SIDE = 2048


@dataclass(frozen=True)
class ClipName:
    """``ARCHITECTURE/TAG`` or ``ARCHITECTURE=FILE`` taken apart.

    Attributes:
        architecture: one of open_clip's configurations.
        tag: of published weights, ``None`` where a file is named.
        file: with the weights, ``None`` where a tag is named.
    """

    architecture: str
    tag: str | None
    file: Path | None

    def __str__(self) -> str:
        return f"{self.architecture}/{self.tag}" if self.file is None else f"{self.architecture}={self.file}"


@dataclass(frozen=True)
class FoundClip:
    """A CLIP's weights on this disk.

    Attributes:
        name: as it was asked for.
        path: the file.
        sha256: of the file, in hexadecimal.
        config: keyword arguments of ``open_clip.CLIP``.
        mean: of red, green, blue in ``[0, 1]``.
        std: of red, green, blue in ``[0, 1]``.
    """

    name: ClipName
    path: Path
    sha256: str
    config: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def clip_name(text: str) -> ClipName | None:
    """Read the name of a CLIP; ``None`` if it is not one, but perhaps a model's name or a path.

    >>> clip_name("ViT-B-16-quickgelu/openai")
    ClipName(architecture='ViT-B-16-quickgelu', tag='openai', file=None)
    >>> clip_name("folder/model.safetensors"), clip_name("playground")
    (None, None)
    """
    architecture, equals, file = text.partition("=")
    if not (equals and file):
        architecture, slash, tag = text.partition("/")
        if not (slash and tag) or "/" in tag:
            return None
        return ClipName(architecture, tag, None) if _is_architecture(architecture) else None
    return ClipName(architecture, None, Path(file)) if _is_architecture(architecture) else None


def _is_architecture(name: str) -> bool:
    # All names of open_clip that can be used begin so, and importing it takes seconds.
    if os.sep in name or not name[:1].isalpha():
        return False
    from tcl_core.towers.open_clip_catalog import architectures

    return name in architectures()


def find_clip(name: ClipName, *, fetch: bool = True, progress: TransferProgress = True) -> FoundClip:
    """The weights of a CLIP, downloaded and pinned if need be.

    Args:
        name: of the CLIP.
        fetch: download what is not there; otherwise that is an error.
        progress: see `tcl_core.models.transfer_progress.TransferProgress`.

    Raises:
        WeightsError: the configuration or the tag is not known or cannot be used, or the file cannot be had or is not
            as it was first downloaded.
    """
    from tcl_core.towers.open_clip_catalog import clip_config, pretrained_clip

    if name.file is not None:
        config = clip_config(name.architecture)
        try:
            sha256 = file_sha256(name.file)
        except OSError as error:
            raise WeightsError(
                f"{name.file}: cannot be read: {error.strerror or error}; give the path of the CLIP's weights after ="
            ) from error
        # Fine-tuned from OpenAI's weights and named without -quickgelu, they would give wrong results in silence.
        used, other = ("QuickGELU", "GELU") if config.get("quick_gelu") else ("GELU", "QuickGELU")
        _log.warning(
            "%s: used with %s, as %s says, and the mean and deviation of OpenAI's CLIP; if it was trained with %s, "
            "name the configuration that has it",
            name.file,
            used,
            name.architecture,
            other,
        )
        return FoundClip(name, name.file, sha256, config, _CLIP_MEAN, _CLIP_STD)
    found = pretrained_clip(name.architecture, str(name.tag))
    if found.note:
        _log.warning("%s: %s", name, found.note)
    files = [_remote(str(name), url) for url in found.urls]
    file = next((file for file in files if (download_folder() / file.filename).exists()), None)
    if file is None and fetch:
        file = _fetched(files, progress)
    file = files[0] if file is None else file
    return FoundClip(name, download_folder() / file.filename, check_file(file), found.config, found.mean, found.std)


def check_clip(name: ClipName) -> None:
    """Refuse a CLIP that is not known or cannot be used, without looking for its weights.

    Raises:
        WeightsError: the configuration or the tag is not known or cannot be used.
    """
    from tcl_core.towers.open_clip_catalog import clip_config, pretrained_clip

    if name.tag is None:
        clip_config(name.architecture)
    else:
        pretrained_clip(name.architecture, name.tag)


def _fetched(files: list[RemoteFile], progress: TransferProgress) -> RemoteFile:
    """Download the first of several files that was published."""
    missing: NotPublishedError | None = None
    for file in files:
        try:
            fetch_file(file, progress=progress)
            return file
        except NotPublishedError as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _remote(name: str, url: str) -> RemoteFile:
    known = next((file for file in load_manifest().files.values() if file.url == url), None)
    if known is not None:
        return known
    page, _, _ = url.partition("/resolve/")
    path = url.partition("://")[2].partition("/")[2].replace("/resolve/main/", "/")
    return RemoteFile(
        name=name, filename=path.replace("/", "--"), url=url, size=None, sha256=None, license="", source=page
    )


def clip_preprocess(found: FoundClip) -> Preprocess:
    """How images are prepared for a CLIP: windows of the trained size at half steps, one and a half of them high."""
    size = found.config["vision_cfg"].get("image_size", 224)
    window = int(size if isinstance(size, int) else min(size))
    return Preprocess(
        mean=found.mean,
        std=found.std,
        short_side=window * 3 // 2,
        max_long_side=max(_MAX_LONG_SIDE, window * 3 // 2),
        window=window,
        stride=max(1, window // 2),
    )


def clip_tokenizer_file(repository: str, progress: TransferProgress = True) -> Path:
    """The tokenizer file of a repository of the hub, downloaded and pinned as weights are.

    Raises:
        WeightsError: it cannot be had.
    """
    url = f"https://huggingface.co/{repository}/resolve/main/tokenizer.json"
    file = _remote(f"the tokenizer {repository}", url)
    return fetch_file(file, progress=progress)
