"""Import of the checkpoints that the authors' training code writes.

Two forms exist: *minimal* (the learned tensors, as published) and *training* (everything: frozen CLIP, learned
tensors, and beside them optimizer, scheduler and configuration). Both keep their tensors under the key ``model``.
They are read with ``weights_only=True``, which builds tensors and plain containers and runs nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.methods import list_methods, method_class
from tcl_core.methods.upstream import UpstreamModel
from tcl_core.models.manifest import load_manifest
from tcl_core.models.metadata import METADATA_KEY, ModelMetadata, Preprocess
from tcl_core.models.modelfile import write_model_file
from tcl_core.models.paths import file_sha256, models_folder
from tcl_core.models.tensor_files import all_finite, read_pytorch_file, safetensors_entries
from tcl_core.models.towers import check_clip_tensors, read_clip_tensors

__all__ = ["import_checkpoint", "read_checkpoint"]


def import_checkpoint(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    out: str | os.PathLike[str] | None = None,
    with_clip: bool | None = None,
    clip_file: str | os.PathLike[str] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    method: str | None = None,
    clip_sha256: str | None = None,
    license: str = "",
    origin: str = "",
) -> Path:
    """Turn an upstream checkpoint into a model file.

    Args:
        source: ``.pth`` file, minimal or training-style.
        name: of the model; if ``None`` the name of ``out``, or else of ``source``, without its ending. Without
            ``out`` the model can then be loaded by this name.
        out: file to write; ``NAME.safetensors`` in the folder of models if ``None``.
        with_clip: write the frozen CLIP into the model file too. ``None`` writes that of ``clip_file``, and one in the
            checkpoint unless it is OpenAI's ViT-B/16, which has a download of its own.
        clip_file: safetensors file with the frozen CLIP in OpenAI's tensor names, for checkpoints that lack it and for
            models that need no download.
        tokenizer: ``tokenizer`` entry of the model file; ``None`` takes CLIP's where the text tower has its 49,408
            tokens, and else none, so that the model encodes token ids but no texts.
        method: registered name; ``None`` asks each method whether the checkpoint is one of its own.
        clip_sha256: of the CLIP download that the model is to be used with.
        license: of the weights.
        origin: where the weights come from; the source's file name if empty.

    Returns:
        Path of the model file. It can be loaded unless the checkpoint is minimal, its sizes are not those of ViT-B/16
        and no ``clip_file`` was given.

    Raises:
        WeightsError: the checkpoint cannot be read safely, or tensors are missing, unknown, of the wrong shape or not
            finite; the message lists them.
    """
    source = Path(source)
    name = name or (Path(out).stem if out is not None else source.stem)
    known = load_manifest().models.get(name)
    if out is None and known is not None and known.by_hand is None:
        raise WeightsError(f"the name {name!r} belongs to a known model; choose another one with --name")
    if known is not None and known.by_hand is not None and method is None:
        method = known.method
    if re.search(r"[/\\:\0]|^\.", name):
        raise WeightsError(
            f"the name {name!r} must not contain slashes or colons or start with a dot; to write to a path, use --out"
        )
    state = read_checkpoint(source)
    towers = {"clip": read_clip_tensors(Path(clip_file))} if clip_file is not None else {}
    try:
        method, found = _recognize(source, state, towers, method)
    except WeightsError as error:
        if clip_file is not None and _fits_alone(source, state, method):
            raise WeightsError(f"{clip_file}: is not the CLIP of {source} ({error})") from error
        raise
    if found.tower_config is not None:
        check_clip_tensors(found.tower_config, found.tower_tensors, str(source if clip_file is None else clip_file))
    downloadable = "open_clip" in found.tower
    if clip_sha256 is not None and not downloadable:
        raise WeightsError(f"{source}: belongs to a different CLIP than the one that would be downloaded")
    if with_clip and not found.tower_tensors:
        raise WeightsError(
            f"{source}: contains no frozen CLIP for the model file; pass the CLIP's safetensors file with --clip"
        )
    held = bool(found.tower_tensors) and (clip_file is not None or not downloadable)
    embed = held if with_clip is None else with_clip
    # Only what is written has to be right; the message has the names that the checkpoint has for it.
    written = [found.learned, found.tower_tensors if embed and clip_file is None else {}]
    if any(_not_finite(tensors) for tensors in written):
        raise WeightsError(f"{source}: {_not_finite(state)}")
    # A checkpoint may hold far more than what is written, and writing takes as much memory again.
    del state
    clip = dict(found.tower)
    if embed:
        clip = {"config": found.tower_config}
    elif downloadable and clip_sha256:
        clip["sha256"] = clip_sha256
    usage: dict[str, Any] = {"templates": found.templates} if found.templates else {}
    if found.background_threshold:
        usage["background_threshold"] = dict(found.background_threshold)
    metadata = ModelMetadata(
        **usage,
        name=name,
        preprocess=Preprocess(**found.preprocess),
        method=method,
        method_config=dict(found.config),
        clip=clip,
        tokenizer=dict(found.tokenizer if tokenizer is None else tokenizer),
        license=license,
        source=origin or f"imported from {source.name}",
        extra={"imported_from": source.name, "imported_sha256": file_sha256(source)},
    )
    target = Path(out) if out is not None else models_folder() / f"{name}.safetensors"
    write_model_file(target, metadata, found.learned, found.tower_tensors if embed else None)
    return target


def _fits_alone(source: Path, state: Mapping[str, Tensor], method: str | None) -> bool:
    """Whether a checkpoint would be understood without the CLIP that was given with it."""
    try:
        _recognize(source, state, {}, method)
    except WeightsError:
        return False
    return True


def _recognize(
    source: Path, state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]], method: str | None
) -> tuple[str, UpstreamModel]:
    """The method of a checkpoint, and what its importer makes of it."""
    broken = ""
    # Whole numbers, such as constants of another library, are no weights; a method that misses one says so.
    odd = _not_dense(state)
    weights = {key: tensor for key, tensor in state.items() if key not in odd}
    for name in list_methods() if method is None else [method]:
        try:
            kind = method_class(name)
        except SettingsError as error:
            if method is not None:
                raise
            # Another package's fault must not keep the other methods' checkpoints from being imported.
            broken = f"; {error}"
            continue
        try:
            found = kind.from_upstream(weights, towers)
        except WeightsError as error:
            also = f"; not dense floating-point tensors: {', '.join(odd)}" if odd else ""
            raise WeightsError(f"{source}: {error}{also}") from error
        if found is not None:
            return name, found
    known = "the method " + method if method is not None else "any method (" + ", ".join(list_methods()) + ")"
    held = ", ".join(sorted(state)[:5]) + (", ..." if len(state) > 5 else "")
    raise WeightsError(f"{source}: is not a checkpoint of {known}; it contains the tensors {held}{broken}")


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint without running anything it holds.

    Args:
        source: file with a dictionary whose key ``model`` holds the tensors by name, or with the tensors alone, as
            those of the Hugging Face hub (``.bin``, ``.safetensors``).

    Returns:
        The tensors under the checkpoint's names, as they are stored, on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, a model file, holds Python objects or a program, or has no tensors
            under ``model``.
    """
    source = Path(source)
    if source.suffix == ".safetensors":
        return _read_safetensors(source)
    content = read_pytorch_file(source)
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        # Files of the Hugging Face hub hold the tensors themselves.
        content = {"model": content}
    if not isinstance(content, dict) or not isinstance(content.get("model"), Mapping):
        found = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(
            f"{source}: has no tensors under the key 'model', as an upstream checkpoint has; found: {found}"
        )
    state = content["model"]
    odd = [str(key) for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if odd:
        raise WeightsError(f"{source}: these entries of 'model' are not tensors: {', '.join(odd)}")
    return dict(state)


def _read_safetensors(source: Path) -> dict[str, Tensor]:
    """Tensors of a file of the Hugging Face hub."""
    try:
        with safe_open(source, framework="pt") as handle:
            if METADATA_KEY in (handle.metadata() or {}):
                raise WeightsError(
                    f"{source}: is a model file, not a checkpoint; a model file needs no import, so use its path"
                )
        return dict(safetensors_entries(source))
    except FileNotFoundError as error:
        raise WeightsError(f"{source}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{source}: is not a complete safetensors file ({error})") from error


def _not_dense(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are no weights, such as counters."""
    return [key for key, tensor in tensors.items() if not tensor.is_floating_point() or tensor.layout != torch.strided]


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the values, empty if nothing is."""
    odd = set(_not_dense(tensors))
    values = [key for key, tensor in tensors.items() if key not in odd and not all_finite(tensor)]
    return f"tensors with values that are not finite (NaN or infinity): {', '.join(values)}" if values else ""
