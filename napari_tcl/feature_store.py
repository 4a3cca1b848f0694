"""Features of a folder's images on disk, so that an image that is opened again is not encoded again.

One file for each image, named by a hash of everything that the features depend on; tensors of floating-point numbers
are kept in 16 bits. What refiners know of the image takes more room than it takes time, and is computed again. A file
that is damaged, or was made for something else, is ignored and replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from tcl_core.methods.base import Features
from tcl_core.segmentation.features import FeatureCache, FeatureKey, ImageFeatures

__all__ = ["MAX_FOLDER_BYTES", "MAX_IMAGE_BYTES", "FeatureFolder", "FolderFeatureCache"]

MAX_IMAGE_BYTES = 20_000_000
"""Of one file; larger features are not kept."""
MAX_FOLDER_BYTES = 4_000_000_000
"""Of all files of a folder together."""

_FORMAT = "3"
_SUFFIX = ".features"
# The mark by which programs for backups know what can be made anew.
_TAG = "CACHEDIR.TAG"
_TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# Features of images, made by tcl-annotate; delete them any time.\n"
)


@dataclass(frozen=True)
class _Header:
    """What a file says about itself, beside its tensors; ``sha256`` is of all else."""

    content: str
    weights: str
    settings: str
    kind: str
    dtypes: dict[str, str]
    origins: list[list[int]]
    working_size: list[int]
    score_size: list[int]
    size: list[int]
    sha256: str = ""
    format: str = _FORMAT


class FeatureFolder:
    """A folder of features.

    Args:
        path: made when the first features are kept.
        max_bytes: bound of all files together. Once it is reached, features of other models and settings make room;
            those of this one stay, for a folder is reviewed from its beginning.
        max_image_bytes: bound of one file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int = MAX_FOLDER_BYTES,
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.max_image_bytes = max_image_bytes
        self.damaged: list[Path] = []
        self._unusable: set[Path] = set()
        self.not_kept = 0
        self.reason = ""

    def get(self, key: FeatureKey) -> ImageFeatures | None:
        """Features on the CPU without guides, in their own precision; ``None`` where there are none that can be used.

        Damaged files are noted in ``damaged``.
        """
        path = self._file(key)
        try:
            if path.stat().st_size > self.max_image_bytes:
                raise ValueError("too large")
            return _unpack(path.read_bytes(), key)
        except FileNotFoundError:
            return None
        except MemoryError:
            raise
        # Damage surfaces as many kinds of errors, of JSON, safetensors and the features' own class.
        except Exception:
            self._unusable.add(path)
            self.damaged.append(path)
            return None

    def __contains__(self, key: FeatureKey) -> bool:
        """Whether there is a file that may be read."""
        path = self._file(key)
        return path not in self._unusable and path.is_file()

    def put(self, features: ImageFeatures) -> bool:
        """Keep features, unless that would exceed a bound or the disk refuses.

        Returns:
            Whether they are kept; ``reason`` says why not.
        """
        packed = _pack(features)
        if packed is None or len(packed) > self.max_image_bytes:
            return self._decline(f"more than {self.max_image_bytes / 1e6:.0f} MB an image")
        path = self._file(features.key)
        try:
            if not self._make_room(len(packed), path):
                return self._decline(f"more than {self.max_bytes / 1e9:.1f} GB a folder")
            self._write(path, packed)
            self._unusable.discard(path)
        except OSError as error:
            return self._decline(f"{self.path}: {error.strerror or error}")
        return True

    def words(self) -> str:
        """What went wrong so far, as a clause; empty if nothing did."""
        said = []
        if self.damaged:
            noun = "file" if len(self.damaged) == 1 else "files"
            said.append(f"{len(self.damaged)} damaged {noun} in {self.path} ignored")
        if self.not_kept:
            noun = "image" if self.not_kept == 1 else "images"
            said.append(f"features of {self.not_kept} {noun} not kept on disk ({self.reason})")
        self.damaged.clear()
        self.not_kept = 0
        return "; ".join(said)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def __len__(self) -> int:
        return len(self._files())

    def _decline(self, reason: str) -> bool:
        self.not_kept += 1
        self.reason = reason
        return False

    def _file(self, key: FeatureKey) -> Path:
        content = hashlib.sha256(f"{key.content}\n{key.weights}\n{key.settings}".encode()).hexdigest()
        # The first part tells which files are of another model without opening them.
        model = hashlib.sha256(f"{key.weights}\n{key.settings}".encode()).hexdigest()
        return self.path / f"{model[:12]}-{content[:32]}{_SUFFIX}"

    def _files(self) -> list[tuple[Path, int, float]]:
        found = []
        with suppress(OSError):
            for entry in os.scandir(self.path):
                with suppress(OSError):
                    if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                        state = entry.stat()
                        found.append((Path(entry.path), state.st_size, state.st_mtime))
        return found

    def _make_room(self, size: int, path: Path) -> bool:
        files = [item for item in self._files() if item[0] != path]
        total = sum(held for _, held, _ in files)
        own = path.name.partition("-")[0]
        others = sorted((item for item in files if item[0].name.partition("-")[0] != own), key=lambda item: item[2])
        for other, held, _ in others:
            if total + size <= self.max_bytes:
                break
            other.unlink(missing_ok=True)
            total -= held
        return total + size <= self.max_bytes

    def _write(self, path: Path, content: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        tag = self.path / _TAG
        if not tag.exists():
            tag.write_text(_TAG_TEXT, encoding="ascii")
        descriptor, part = tempfile.mkstemp(dir=self.path, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise


class FolderFeatureCache(FeatureCache):
    """A cache in memory, behind which lies a folder while `beside` says so."""

    _folder: FeatureFolder | None = None

    @contextmanager
    def beside(self, folder: FeatureFolder | None) -> Iterator[None]:
        """Read from and write to a folder too; ``None`` changes nothing. Not for several threads at once."""
        before, self._folder = self._folder, folder
        try:
            yield
        finally:
            self._folder = before

    def get(self, key: FeatureKey) -> ImageFeatures | None:
        """The features of a key, from memory or from the folder; those of the folder have no guides."""
        found = super().get(key)
        if found is None and self._folder is not None:
            found = self._folder.get(key)
        return found

    def put(self, key: FeatureKey, value: ImageFeatures) -> bool:
        """Keep features, in the folder if they are not there yet."""
        if self._folder is not None and key not in self._folder:
            self._folder.put(value)
        return super().put(key, value)


def _pack(features: ImageFeatures) -> bytes | None:
    """The content of a file, or ``None`` where the numbers do not fit into 16 bits."""
    tensors: dict[str, Tensor] = {}
    dtypes = {}
    for name, tensor in features.windows.to_tensors().items():
        small = tensor.to("cpu", torch.float16) if tensor.is_floating_point() else tensor.to("cpu")
        if small.is_floating_point() and not bool(small.isfinite().all()):
            return None
        tensors[name] = small.contiguous()
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
    header = _Header(
        content=features.key.content,
        weights=features.key.weights,
        settings=features.key.settings,
        kind=_kind(type(features.windows)),
        dtypes=dtypes,
        origins=[list(origin) for origin in features.origins],
        working_size=list(features.working_size),
        score_size=list(features.score_size),
        size=list(features.size),
    )
    header = replace(header, sha256=_digest(header, tensors))
    return save(tensors, {"features": json.dumps(header.__dict__)})


def _unpack(content: bytes, key: FeatureKey) -> ImageFeatures:
    """The inverse of `_pack`.

    Raises:
        Exception: the content is damaged or of another key.
    """
    length = int.from_bytes(content[:8], "little")
    header = _Header(**json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["features"]))
    tensors = load(content)
    if header.format != _FORMAT or FeatureKey(header.content, header.weights, header.settings) != key:
        raise ValueError("made for something else")
    if _digest(header, tensors) != header.sha256:
        raise ValueError("damaged")
    restored = {name: tensor.to(getattr(torch, header.dtypes[name])) for name, tensor in tensors.items()}
    windows = _kinds()[header.kind].from_tensors(restored)
    if len(windows) != len(header.origins):
        raise ValueError("windows are missing")
    return ImageFeatures(
        windows=windows,
        guide=None,
        image_guide=None,
        origins=tuple(_pair(origin) for origin in header.origins),
        working_size=_pair(header.working_size),
        score_size=_pair(header.score_size),
        size=_pair(header.size),
        key=key,
    )


def _pair(numbers: list[int]) -> tuple[int, int]:
    first, second = numbers
    return int(first), int(second)


def _digest(header: _Header, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(replace(header, sha256="").__dict__, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.dim() else b"")
        if not tensor.dim():
            digest.update(str(tensor.item()).encode())
    return digest.hexdigest()


def _kind(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _kinds() -> dict[str, type[Features]]:
    """All kinds of features that are loaded, by name: no module is imported because a file says so."""
    found: dict[str, type[Features]] = {}
    waiting: list[type[Features]] = [Features]
    while waiting:
        kind = waiting.pop()
        found[_kind(kind)] = kind
        waiting += kind.__subclasses__()
    return found
