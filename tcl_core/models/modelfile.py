"""One model, one safetensors file: learned tensors, optionally the CLIP they belong to, and a description.

Tensors of the CLIP are stored as ``clip.<open_clip name>``, learned tensors under the official names of the method, the
axes of `tcl_core.segmentation.text_debiasing.PromptDebiasing`, if any, as ``debiasing.axes``.
Reading never runs code: safetensors holds numbers and text alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.models.metadata import METADATA_KEY, ModelMetadata
from tcl_core.models.paths import file_sha256, write_atomically
from tcl_core.models.tensor_files import all_finite, mapped_entries, unchanged

__all__ = ["CLIP_PREFIX", "ModelFile", "read_metadata", "read_model_file", "write_model_file"]

CLIP_PREFIX = "clip."
_DEBIASING_AXES = "debiasing.axes"


@dataclass(frozen=True)
class ModelFile:
    """A model file in memory.

    Attributes:
        path: where it was read.
        sha256: of the file's bytes, in hexadecimal.
        metadata: what the file says about itself.
        learned: the method's tensors by their official names, float32.
        clip: the CLIP's tensors by open_clip's names, float32; empty where the file refers to a CLIP elsewhere.
        debiasing_axes: float32 ``[A, E]``, see `tcl_core.segmentation.text_debiasing.PromptDebiasing`.
    """

    path: Path
    sha256: str
    metadata: ModelMetadata
    learned: dict[str, Tensor]
    clip: dict[str, Tensor]
    debiasing_axes: Tensor | None = None


def write_model_file(
    path: str | os.PathLike[str],
    metadata: ModelMetadata,
    learned: Mapping[str, Tensor],
    clip: Mapping[str, Tensor] | None = None,
    *,
    debiasing_axes: Tensor | None = None,
    half: bool = False,
) -> str:
    """Write a model file; it appears under its name only when it is complete.

    Args:
        path: file to write (``.safetensors``); an older one is replaced.
        metadata: description; it is checked as it will be when read.
        learned: the method's tensors by their official names.
        clip: the CLIP's tensors by open_clip's names, without a prefix; ``None`` leaves the CLIP out.
        debiasing_axes: float ``[A, E]``, exactly where the metadata names debiasing words.
        half: store tensors of one or more dimensions as float16, half the size; scalars stay float32.

    Returns:
        SHA-256 of the file in hexadecimal. The same input gives the same bytes.

    Raises:
        WeightsError: the metadata or a tensor is not valid (not finite, or too large for float16), or the file cannot
            be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: a model file's name must end in .safetensors")
    metadata = ModelMetadata.from_dict(metadata.to_dict())
    if bool(clip) != ("config" in metadata.clip):
        raise WeightsError(f"{path}: clip.config and the CLIP's tensors belong together; give both or neither")
    named = {**learned, **{CLIP_PREFIX + name: tensor for name, tensor in (clip or {}).items()}}
    clash = sorted(name for name in learned if name.startswith(CLIP_PREFIX) or name == _DEBIASING_AXES)
    if clash:
        raise WeightsError(
            f"{path}: learned tensors must not be named {CLIP_PREFIX}* or {_DEBIASING_AXES}: {', '.join(clash)}"
        )
    _check_axes_belong(path, metadata, debiasing_axes)
    if debiasing_axes is not None:
        named[_DEBIASING_AXES] = debiasing_axes
    stored = {name: _storable(path, name, named[name], half) for name in sorted(named)}
    content = save(stored, metadata={METADATA_KEY: metadata.to_json()})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Read the description alone, without the tensors.

    Raises:
        WeightsError: the file is missing, damaged or not a model file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as handle:
            return _metadata(path, handle.metadata())
    except (OSError, SafetensorError) as error:
        raise WeightsError(_unreadable(path, error)) from error


def read_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Read a model file; float16 and bfloat16 tensors become float32.

    Raises:
        WeightsError: the file is missing, damaged, not a model file or replaced while it is read, or a tensor is not
            floating point or not finite.
    """
    path = Path(path)
    learned: dict[str, Tensor] = {}
    clip: dict[str, Tensor] = {}
    try:
        # Hash, description and tensors are of one version of the file.
        with unchanged(path):
            sha256 = file_sha256(path)
            with safe_open(path, framework="pt") as handle:
                metadata = _metadata(path, handle.metadata())
            for name, tensor in mapped_entries(path):
                _check_tensor(path, name, tensor)
                group, key = (clip, name[len(CLIP_PREFIX) :]) if name.startswith(CLIP_PREFIX) else (learned, name)
                group[key] = tensor
    except (OSError, SafetensorError) as error:
        raise WeightsError(_unreadable(path, error)) from error
    if bool(clip) != ("config" in metadata.clip):
        raise WeightsError(f"{path}: the metadata and the tensors disagree on whether the file contains a CLIP")
    axes = learned.pop(_DEBIASING_AXES, None)
    _check_axes_belong(path, metadata, axes)
    return ModelFile(path=path, sha256=sha256, metadata=metadata, learned=learned, clip=clip, debiasing_axes=axes)


def _check_axes_belong(path: Path, metadata: ModelMetadata, axes: Tensor | None) -> None:
    if bool(metadata.debiasing) != (axes is not None):
        raise WeightsError(
            f"{path}: debiasing needs words in the metadata and the tensor {_DEBIASING_AXES}, or neither"
        )


def _metadata(path: Path, header: Mapping[str, str] | None) -> ModelMetadata:
    text = (header or {}).get(METADATA_KEY)
    if text is None:
        raise WeightsError(
            f"{path}: this safetensors file is not a model file of tcl-annotate: it has no {METADATA_KEY!r} metadata"
        )
    try:
        entry = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise WeightsError(f"{path}: the metadata is not valid JSON: {error}") from error
    if not isinstance(entry, dict):
        raise WeightsError(f"{path}: the metadata must be a JSON object")
    try:
        return ModelMetadata.from_dict(entry)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _storable(path: Path, name: str, tensor: Tensor, half: bool) -> Tensor:
    _check_tensor(path, name, tensor)
    dtype = torch.float16 if half and tensor.dim() else torch.float32
    # A clone, because safetensors refuses tensors that share memory (tied weights, views).
    result = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    if not all_finite(result):
        remedy = "; store it as float32" if dtype == torch.float16 else ""
        raise WeightsError(f"{path}: tensor {name} has values too large for {str(dtype)[6:]}{remedy}")
    return result


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise WeightsError(f"{path}: tensor {name} must be floating point, not {tensor.dtype}")
    if not all_finite(tensor):
        raise WeightsError(f"{path}: tensor {name} has values that are not finite (NaN or infinity)")


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"{path}: cannot be read: {error.strerror}"
    return f"{path}: is not a complete safetensors file ({error})"
