"""Building a frozen CLIP from a configuration and tensors, or from the download that a model file refers to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.models.download import check_file
from tcl_core.models.manifest import RemoteFile, load_manifest
from tcl_core.models.paths import download_folder
from tcl_core.models.tensor_files import all_finite, pytorch_entries, safetensors_entries, unchanged
from tcl_core.tensors import state_faults
from tcl_core.towers.clip_config import clip_config_from_state_dict
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = [
    "build_clip",
    "check_clip_tensors",
    "load_clip_file",
    "load_referenced_clip",
    "read_clip_tensors",
    "referenced_file",
]

# Sizes that OpenAI's archives keep beside the tensors.
_NOT_TENSORS = {"input_resolution", "context_length", "vocab_size"}


def build_clip(config: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> FrozenClip:
    """Build a CLIP and fill it with tensors.

    Args:
        config: keyword arguments of ``open_clip.CLIP`` for a plain ViT.
        tensors: by open_clip's names; every one has to be there, and no other.
        what: file that is named in messages.

    Returns:
        The frozen CLIP in float32 on the CPU.

    Raises:
        WeightsError: the tensors do not fit the configuration; the message lists them.
    """
    _compare_sizes(config, tensors, what)
    # The meta device takes no memory and no time for random numbers; the tensors then become the parameters.
    with torch.device("meta"):
        model = _create(config, what)
    _compare_tensors(model, tensors, what)
    model.load_state_dict(
        {name: tensor.float().contiguous() for name, tensor in tensors.items()}, strict=True, assign=True
    )
    _fill_causal_mask(model, what)
    return FrozenClip(model)


def load_clip_file(config: Mapping[str, Any], path: Path) -> FrozenClip:
    """Build a CLIP from a file of its weights.

    Args:
        config: keyword arguments of ``open_clip.CLIP`` for a plain ViT.
        path: ``.safetensors``, or a state dict that ``torch.save`` wrote.

    Returns:
        The frozen CLIP in float32 on the CPU.

    Raises:
        WeightsError: the file is missing or damaged, holds more than tensors, or does not fit the configuration.
    """
    tensors = read_clip_tensors(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    return build_clip(config, tensors, str(path))


def check_clip_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> None:
    """The checks of :func:`build_clip` alone.

    Raises:
        WeightsError: the tensors do not fit the configuration; the message lists them.
    """
    _compare_sizes(config, tensors, what)
    with torch.device("meta"):
        model = _create(config, what)
    _compare_tensors(model, tensors, what)
    FrozenClip(model)


def read_clip_tensors(path: Path) -> dict[str, Tensor]:
    """Read a CLIP's tensors from a safetensors file in OpenAI's or open_clip's names, as float32.

    Raises:
        WeightsError: the file is missing or damaged, or a tensor is not floating point.
    """
    try:
        return {key: _weight(path, key, x) for key, x in safetensors_entries(path) if key not in _NOT_TENSORS}
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: is not a complete safetensors file ({error})") from error


def _weight(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor of a file in memory of its own, float32, checked before memory is taken for it."""
    fault = ""
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        fault = f"is {tensor.dtype} and {str(tensor.layout).removeprefix('torch.')}, not dense floating point"
    # A few bytes can be declared to be any number of equal values.
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        fault = "has more values than the file holds"
    elif not all_finite(tensor):
        fault = "has values that are not finite (NaN or infinity)"
    if fault:
        raise WeightsError(f"{path}: the tensor {name} {fault}; give a CLIP's own weights")
    return tensor.float().contiguous()


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a file of ``torch.save`` by open_clip's names, as float32."""
    found = {}
    for key, tensor in pytorch_entries(path, ("state_dict", "model")):
        name = key.removeprefix("module.")
        if name not in _NOT_TENSORS:
            found[name] = _weight(path, key, tensor)
    if not found:
        raise WeightsError(f"{path}: does not contain named tensors, as a CLIP state dict does")
    return found


def referenced_file(open_clip_name: str, pretrained: str) -> RemoteFile:
    """The download that holds a pretrained CLIP.

    Raises:
        WeightsError: the manifest knows no such CLIP.
    """
    clips = load_manifest().clips
    if (open_clip_name, pretrained) not in clips:
        known = ", ".join("/".join(key) for key in clips)
        raise WeightsError(
            f"the CLIP {open_clip_name}/{pretrained} is not known to this version; the known ones are: {known}"
        )
    return clips[open_clip_name, pretrained]


def load_referenced_clip(reference: Mapping[str, Any], model_path: Path, folder: Path | None = None) -> FrozenClip:
    """Load the CLIP that a model file refers to from the download folder.

    Args:
        reference: ``{"open_clip": ..., "pretrained": ...}``, optionally with the ``"sha256"`` the file must have.
        model_path: the model file, for messages.
        folder: the download folder, where it is not the usual one.

    Raises:
        WeightsError: the CLIP is not known, not downloaded, damaged, or another one than the model was made for.
    """
    name, pretrained = str(reference["open_clip"]), str(reference["pretrained"])
    file = referenced_file(name, pretrained)
    path = (folder or download_folder()) / file.filename
    config = open_clip.get_model_config(name)
    # What is loaded is what was checked.
    with unchanged(path):
        sha256 = check_file(file, folder)
        wanted = reference.get("sha256")
        if wanted is not None and wanted != sha256:
            raise WeightsError(
                f"{model_path}: was made for a CLIP with SHA-256 {wanted}, but {path} has {sha256}; fetch the model "
                "again"
            )
        if config is None:
            raise WeightsError(
                f"{model_path}: the installed open_clip does not know the model {name}; upgrade open_clip_torch"
            )
        tensors = read_clip_tensors(path)
    return build_clip(config, tensors, str(path))


def _fill_causal_mask(model: open_clip.CLIP, what: str) -> None:
    """The mask is computed, not stored, so that it is the one buffer that has no numbers yet."""
    mask = model.attn_mask
    if mask is not None and mask.is_meta:
        model.attn_mask = torch.full(mask.shape, float("-inf")).triu_(1)
    left = [name for name, tensor in [*model.named_buffers(), *model.named_parameters()] if tensor.is_meta]
    if left:
        raise WeightsError(f"{what}: these tensors of the CLIP are in no file: {', '.join(left)}; use another CLIP")


def _create(config: Mapping[str, Any], what: str) -> open_clip.CLIP:
    try:
        return open_clip.CLIP(**config)
    # open_clip checks its configuration by assertions and by failing somewhere inside.
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise WeightsError(f"{what}: open_clip cannot build a CLIP from its configuration: {error}") from error


def _compare_sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> None:
    if any(name.startswith(("vision_model.", "visual.trunk.")) for name in tensors):
        raise WeightsError(
            f"{what}: has the tensor names of transformers or timm, not open_clip's; give the file that open_clip "
            "uses, usually called open_clip_model.safetensors or open_clip_pytorch_model.bin"
        )
    try:
        found = clip_config_from_state_dict(tensors)
    except WeightsError as error:
        raise WeightsError(f"{what}: {error}") from error
    faults = []
    for part, keys in (
        (None, ("embed_dim",)),
        ("vision_cfg", ("layers", "width", "patch_size", "image_size", "mlp_ratio")),
        ("text_cfg", ("layers", "width", "vocab_size", "context_length", "mlp_ratio")),
    ):
        given, own = (config, found) if part is None else (config[part], found[part])
        faults += [
            f"{key if part is None else f'{part}.{key}'} is {given[key]!r}, its tensors have {own[key]!r}"
            for key in keys
            if key in given and _sizes_differ(key, given, own)
        ]
    if faults:
        raise WeightsError(f"{what}: the CLIP's configuration and tensors differ: {'; '.join(faults)}")


def _sizes_differ(key: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    if key != "mlp_ratio" or not isinstance(given[key], int | float) or not isinstance(given.get("width"), int):
        return bool(given[key] != own[key])
    # open_clip writes some ratios with four digits, and rounds the width that they give down.
    return int(given["width"] * given[key]) != round(own["width"] * own[key])


def _compare_tensors(model: open_clip.CLIP, tensors: Mapping[str, Tensor], what: str) -> None:
    faults = state_faults(model.state_dict(), tensors)
    if faults:
        raise WeightsError(f"{what}: the tensors do not fit the CLIP; {'; '.join(faults)}")
