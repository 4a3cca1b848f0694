"""What a network is quantized with: windows of the user's images, and how well it then did on others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tcl_core.backends.networks import NetworkStore

__all__ = ["Calibration", "calibration_digests", "read_calibration", "write_calibration"]

_FILE = "calibration.safetensors"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Windows that a network is quantized with, at whatever size it is exported.

    Attributes:
        windows: uint8 ``[3, h, w]`` each, RGB; at least one.
        mean: of red, green, blue in ``[0, 1]``, subtracted.
        std: of red, green, blue in ``[0, 1]``, divided by.
        measured: what is told of it in results, as plain JSON values; empty before anything is measured.
    """

    windows: tuple[Tensor, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the windows."""
        return sum(window.nbytes for window in self.windows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a quantized network depends on, in hexadecimal."""
        digest = hashlib.sha256(json.dumps([self.mean, self.std]).encode())
        for window in self.windows:
            digest.update(json.dumps(list(window.shape)).encode())
            digest.update(window.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def samples(self, size: tuple[int, int]) -> list[NDArray[np.float32]]:
        """The windows as a network of another size takes them, float32 ``[1, 3, H, W]`` each, normalized.

        Args:
            size: height and width; windows of another size are resized.
        """
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        found = []
        for window in self.windows:
            pixels = ((window.float() / 255 - mean) / std)[None]
            if window.shape[1:] != size:
                pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
            found.append(pixels.numpy())
        return found


def read_calibration(store: NetworkStore, identity: str) -> Calibration | None:
    """The calibration of a network, ``None`` where there is none.

    Args:
        store: where it may be.
        identity: everything that says which network it is, and by which programs it is quantized.
    """
    found: Calibration | None = store.read(identity, _load)
    return found


def write_calibration(store: NetworkStore, identity: str, network: str, calibration: Calibration) -> None:
    """Keep the calibration of a network, in the place of an earlier one.

    Args:
        store: where.
        identity: see `read_calibration`.
        network: the part of it that says which network it is; see `calibration_digests`.
        calibration: with what was measured.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {str(place): window.contiguous() for place, window in enumerate(calibration.windows)}
    about = {"mean": calibration.mean, "std": calibration.std, "measured": calibration.measured}
    metadata = {"about": json.dumps(about), "network": network}
    store.replace(identity, lambda path: save_file(tensors, path.with_name(_FILE), metadata))


def calibration_digests(store: NetworkStore, weights: str) -> list[str]:
    """What tells apart all that is kept for a model's weights, under any options and by any program, sorted.

    Args:
        store: where.
        weights: their SHA-256 in hexadecimal.
    """
    found = []
    for path in store.paths(_FILE):
        try:
            with safe_open(path, "pt") as file:
                ours = weights in file.metadata()["network"]
            found += [_load(path).digest] if ours else []
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            # One that is being removed, or that nobody can use either.
            continue
    return sorted(found)


def _load(path: Path) -> Calibration:
    try:
        with safe_open(path.with_name(_FILE), "pt") as file:
            about = json.loads(file.metadata()["about"])
            windows = tuple(file.get_tensor(str(place)) for place in range(len(file.keys())))
        mean, std = (tuple(map(float, about[name])) for name in ("mean", "std"))
        found = Calibration(windows, mean, std, dict(about["measured"]))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError("the calibration is damaged") from error
    if not windows or not len(mean) == len(std) == 3:
        raise ValueError("the calibration is incomplete")
    if any(window.dtype != torch.uint8 or window.ndim != 3 or window.shape[0] != 3 for window in windows):
        raise ValueError("the calibration holds no windows")
    return found
