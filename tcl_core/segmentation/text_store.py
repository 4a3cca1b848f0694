"""Embedded prompts on disk, so that no process computes what another one has computed.

One small safetensors file for each prompt, in a folder for each way of embedding. Names of files are hashes, so prompts
cannot be read off them, and nothing in a file is run. A file appears only when it is complete; one that is damaged
counts as missing. Nobody depends on the folder: it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from tcl_core.methods.base import PromptEmbeddings

__all__ = ["TextStore", "write_embeddings"]

_MOST_FILES = 16_384
"""Of some kilobytes each, in all folders together: 64 MB where a file takes 4 KB of the disk."""

_KEPT_SHARE = 0.9
_LARGEST = 1 << 20
_ABANDONED_SECONDS = 3600


class TextStore:
    """Prompts of one way of embedding. Safe to use from several threads and processes.

    Args:
        folder: of all stores of this user; it need not exist.
        identity: everything that embeddings depend on beside the prompt, as JSON values.
        kind: of the embeddings.
        most: files in all stores of the folder together; those that were not used for the longest time are removed.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], kind: type[PromptEmbeddings], most: int = _MOST_FILES
    ) -> None:
        self._root = folder
        self._folder = folder / _digest(json.dumps(identity, sort_keys=True))[:32]
        self._kind = kind
        self._most = most
        self._lock = threading.Lock()
        self._puts_left = 1
        self._broken = False

    def get(self, prompt: str) -> PromptEmbeddings | None:
        """The embedding of a prompt on the CPU; ``None`` where there is none that can be read."""
        path = self._path(prompt)
        try:
            if path.stat().st_size > _LARGEST:
                return None
            found = self._kind.from_tensors(load(path.read_bytes()))
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        if len(found) != 1 or not all(bool(tensor.isfinite().all()) for tensor in found.tensors().values()):
            return None
        try:
            # Counts as a use. A folder that cannot be written to serves as well.
            os.utime(path)
        except OSError:
            pass
        return found

    def put(self, prompt: str, embedding: PromptEmbeddings) -> None:
        """Keep the embedding of a prompt; where the folder cannot be written to, a warning is given once."""
        if self._broken:
            return
        try:
            write_embeddings(self._path(prompt), embedding)
            self._bound()
        except FileNotFoundError:
            # Somebody deletes the folder at this moment, which is allowed.
            return
        except OSError as error:
            self._broken = True
            warnings.warn(
                f"{self._root}: embedded prompts cannot be cached ({error.strerror or error}), so every run embeds "
                "them again; free some space, or set TCL_ANNOTATE_TEXT_CACHE=off",
                stacklevel=2,
            )

    def _path(self, prompt: str) -> Path:
        return self._folder / f"{_digest(prompt)}.safetensors"

    def _bound(self) -> None:
        """Look at the folder now and then; other stores and processes write to it too."""
        with self._lock:
            self._puts_left -= 1
            if self._puts_left > 0:
                return
            self._puts_left = max(1, self._most // 10)
            files = sorted(self._files())
            if len(files) > self._most:
                for _, path in files[: len(files) - int(self._most * _KEPT_SHARE)]:
                    Path(path).unlink(missing_ok=True)

    def _files(self) -> list[tuple[float, str]]:
        """Time of the last use and path of every prompt's file; what interrupted processes left is removed."""
        found = []
        for folder in [entry.path for entry in os.scandir(self._root) if entry.is_dir()]:
            for entry in os.scandir(folder):
                try:
                    used = entry.stat().st_mtime
                except FileNotFoundError:
                    continue
                if entry.name.endswith(".safetensors"):
                    found.append((used, entry.path))
                elif entry.name.endswith(".part") and used < time.time() - _ABANDONED_SECONDS:
                    Path(entry.path).unlink(missing_ok=True)
        return found


def write_embeddings(path: Path, embeddings: PromptEmbeddings) -> None:
    """Write embeddings to a safetensors file that appears under its name only when it is complete.

    Args:
        path: of the file; its folder is made if need be.
        embeddings: of one or more prompts.

    Raises:
        OSError: it cannot be written.
    """
    content = save({name: tensor.cpu().contiguous() for name, tensor in embeddings.to_tensors().items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False)
    try:
        with part:
            part.write(content)
        os.replace(part.name, path)
    except OSError:
        Path(part.name).unlink(missing_ok=True)
        raise


def _digest(text: str) -> str:
    # A lone surrogate of a damaged file name is no reason to fail.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
