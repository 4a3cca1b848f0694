"""Import of the checkpoints that the authors' training code writes.

Two forms exist: *minimal* (the learned tensors, as published) and *training* (everything: frozen CLIP, learned
tensors, and beside them optimizer, scheduler and configuration). Both keep their tensors under the key ``model``.
They are read with ``weights_only=True``, which builds tensors and plain containers and runs nothing else.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.methods.tcl import (
    TCL,
    TCLConfig,
    config_from_state_dict,
    frozen_clip_state_dict,
    learned_keys,
    learned_state_dict_from_upstream,
)
from tcl_core.models.manifest import load_manifest
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.models.modelfile import write_model_file
from tcl_core.models.paths import file_sha256, models_folder
from tcl_core.models.towers import check_clip_tensors, read_clip_tensors
from tcl_core.towers.open_clip_vit import FrozenClip, clip_config_from_state_dict

__all__ = ["import_checkpoint", "read_checkpoint"]

# ImageNet's statistics, which the authors' training used instead of CLIP's own.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_LONG_SIDE = 2048
_CLIP_TOKENS = 49408
_CLIP_VIT_B16 = {"open_clip": "ViT-B-16-quickgelu", "pretrained": "openai"}
_BLOCK = re.compile(r"masker\.image_encoder\.backbone\.transformer\.resblocks\.(\d+)\.")
_MOST_BLOCKS = 512
_PROJECTION = "masker.image_encoder.decoder.image_proj.proj"


class _Sizes(NamedTuple):
    """What tells one CLIP from another."""

    width: int
    embed_dim: int
    depth: int
    patch: int
    vocabulary: int


_VIT_B16 = _Sizes(768, 512, 12, 16, _CLIP_TOKENS)


def import_checkpoint(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    out: str | os.PathLike[str] | None = None,
    with_clip: bool | None = None,
    clip_file: str | os.PathLike[str] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
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
        with_clip: write the frozen CLIP into the model file too. ``None`` leaves OpenAI's ViT-B/16 to its own
            download and writes every other CLIP, where there is one in the checkpoint or in ``clip_file``.
        clip_file: safetensors file with the frozen CLIP in OpenAI's tensor names, for checkpoints that lack it.
        tokenizer: ``tokenizer`` entry of the model file; ``None`` takes CLIP's where the text tower has its 49,408
            tokens, and else none, so that the model encodes token ids but no texts.
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
    if out is None and name in load_manifest().models:
        raise WeightsError(f"the name {name!r} belongs to a known model; choose another one with --name")
    if re.search(r"[/\\:\0]|^\.", name):
        raise WeightsError(
            f"the name {name!r} must not hold slashes or colons or begin with a dot; give a path with --out"
        )
    state = {key: tensor for key, tensor in read_checkpoint(source).items() if not key.startswith("pamr.")}
    frozen = frozen_clip_state_dict(state)
    clip_source = source
    if clip_file is not None:
        clip_source = Path(clip_file)
        frozen = read_clip_tensors(clip_source)
    problems = _value_problems({**state, **frozen})
    if problems:
        raise WeightsError(f"{source}: {'; '.join(problems)}")
    if frozen:
        # The method never uses CLIP's own temperature, so the authors do not keep it; this is OpenAI's trained value.
        frozen = {"logit_scale": torch.tensor(math.log(100.0)), **_as_float32(frozen)}
    config = _clip_config(frozen, clip_source) if frozen else None
    sizes = _sizes(state, config)
    is_vit_b16 = sizes == _VIT_B16
    try:
        learned = _as_float32(learned_state_dict_from_upstream(_with_blocks(state, sizes), sizes.depth))
        structure = TCLConfig() if is_vit_b16 else config_from_state_dict(learned, sizes.depth)
        _empty_method(sizes, structure).load_learned_state_dict(learned)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    if clip_sha256 is not None and not is_vit_b16:
        raise WeightsError(f"{source}: belongs to a CLIP of other sizes ({sizes}) than OpenAI's ViT-B/16")
    if with_clip and not frozen:
        raise WeightsError(
            f"{source}: holds no frozen CLIP (clip_text_encoder.*, clip_image_encoder.*) to write into the model file; "
            "give the CLIP's own safetensors file"
        )
    embed = bool(frozen) and not is_vit_b16 if with_clip is None else with_clip
    clip: dict[str, Any] = {}
    if embed:
        clip = {"config": config}
    elif is_vit_b16:
        clip = _CLIP_VIT_B16 | ({"sha256": clip_sha256} if clip_sha256 else {})
    metadata = ModelMetadata(
        name=name,
        preprocess=_preprocess(config),
        method_config={} if structure == TCLConfig() else structure.to_dict(),
        clip=clip,
        tokenizer=_tokenizer(config) if tokenizer is None else dict(tokenizer),
        license=license,
        source=origin or f"imported from {source.name}",
        extra={"imported_from": source.name, "imported_sha256": file_sha256(source)},
    )
    target = Path(out) if out is not None else models_folder() / f"{name}.safetensors"
    write_model_file(target, metadata, learned, frozen if embed else None)
    return target


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint without running anything it holds.

    Args:
        source: file with a dictionary whose key ``model`` holds the tensors by name.

    Returns:
        The tensors under the checkpoint's names, as they are stored, on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, holds Python objects or a program, or has no tensors under
            ``model``.
    """
    source = Path(source)
    if source.suffix == ".safetensors":
        raise WeightsError(
            f"{source}: is a safetensors file, not a checkpoint; a model file needs no import, give its path"
        )
    try:
        if _is_program(source):
            raise WeightsError(
                f"{source}: this is a TorchScript archive, a program that would run when it is loaded; only "
                "checkpoints of tensors can be imported"
            )
        content = torch.load(source, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(_unpickling_message(source, error)) from error
    except FileNotFoundError as error:
        raise WeightsError(f"{source}: there is no such file") from error
    except OSError as error:
        raise WeightsError(f"{source}: cannot be read: {error.strerror or error}") from error
    # Damaged archives surface as many kinds of errors, depending on where the damage is.
    except Exception as error:
        raise WeightsError(f"{source}: is not a whole PyTorch checkpoint ({_first_sentence(error)})") from error
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


def _unpickling_message(source: Path, error: Exception) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    with open(source, "rb") as file:
        is_archive = zipfile.is_zipfile(file)
        file.seek(0)
        is_pickle = file.read(1) == pickle.PROTO
    # Where no class is asked for the file is damaged or something else altogether; to trust it would not help.
    if not (found and (is_archive or is_pickle)) and not (is_pickle and _asks_for_class(source)):
        return f"{source}: is not a whole PyTorch checkpoint"
    what = f" ({found[1]})" if found else ""
    return (
        f"{source}: holds Python objects besides tensors{what}; reading such objects can run any code, "
        "so it was not read; if you trust the file, keep only its tensors in the environment that wrote it with "
        '\'import torch; c = torch.load("IN.pth", map_location="cpu", weights_only=False); '
        'torch.save({"model": c["model"]}, "OUT.pth")\' and import OUT.pth'
    )


def _asks_for_class(source: Path) -> bool:
    """Whether a pickle, of any protocol, names a class or function; it is looked through, not run."""
    with open(source, "rb") as file:
        try:
            return any("GLOBAL" in opcode.name for opcode, _, _ in pickletools.genops(file))
        # Damage surfaces as many kinds of errors.
        except Exception:
            return False


def _is_program(source: Path) -> bool:
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", entry) for entry in archive.namelist())


def _value_problems(tensors: Mapping[str, Tensor]) -> list[str]:
    kinds = [key for key, tensor in tensors.items() if not tensor.is_floating_point() or tensor.layout != torch.strided]
    values = [key for key, tensor in tensors.items() if key not in kinds and not torch.isfinite(tensor).all()]
    problems = []
    if kinds:
        problems.append(f"not dense floating-point tensors: {', '.join(kinds)}")
    if values:
        problems.append(f"tensors with values that are not finite (NaN or infinity): {', '.join(values)}")
    return problems


def _clip_config(frozen: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    try:
        config = clip_config_from_state_dict(frozen)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    check_clip_tensors(config, frozen, str(source))
    return config


def _sizes(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> _Sizes:
    """Sizes of the CLIP, or where it is not there what the learned tensors show of them."""
    if config is not None:
        vision, text = config["vision_cfg"], config["text_cfg"]
        return _Sizes(vision["width"], config["embed_dim"], vision["layers"], vision["patch_size"], text["vocab_size"])
    projection = state.get(_PROJECTION)
    if projection is None or projection.dim() != 2 or tuple(projection.shape) == _VIT_B16[:2]:
        return _VIT_B16
    blocks = {int(match[1]) for key in state if (match := _BLOCK.match(key))}
    # Counted from 0, the blocks do not tell how many others came before; one is the fewest that is possible.
    depth = max(blocks, default=0) + (2 if 0 in blocks else 1)
    return _VIT_B16._replace(width=projection.shape[0], embed_dim=projection.shape[1], depth=depth)


def _with_blocks(state: Mapping[str, Tensor], sizes: _Sizes) -> Mapping[str, Tensor]:
    if any(_BLOCK.match(key) for key in state):
        if sizes.depth > _MOST_BLOCKS:
            raise WeightsError(f"has a transformer block numbered {sizes.depth - 1}, which no image tower has")
        return state
    wanted = set(learned_keys(TCLConfig(), sizes.depth))
    unknown = sorted(state.keys() - wanted - {key for key in state if key.startswith("clip_")})
    raise WeightsError(
        f"this is not a TCL checkpoint; missing: {', '.join(sorted(wanted - state.keys()))}; "
        f"unknown: {', '.join(unknown) or 'none'}"
    )


def _empty_method(sizes: _Sizes, structure: TCLConfig) -> TCL:
    """TCL on a CLIP of these sizes, without memory: it knows the names and shapes of its tensors."""
    with torch.device("meta"):
        clip = open_clip.CLIP(
            embed_dim=sizes.embed_dim,
            vision_cfg={
                "image_size": sizes.patch,
                "patch_size": sizes.patch,
                "width": sizes.width,
                "head_width": sizes.width,
                "layers": sizes.depth,
            },
            text_cfg={"vocab_size": sizes.vocabulary, "width": 8, "heads": 1, "layers": 1},
        )
        return TCL(FrozenClip(clip), structure)


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in tensors.items()}


def _preprocess(config: Mapping[str, Any] | None) -> Preprocess:
    # The authors trained at 224 pixels and evaluate with windows of 448 and a stride of 224.
    side = 224 if config is None else config["vision_cfg"]["image_size"]
    return Preprocess(_MEAN, _STD, 2 * side, max(_MAX_LONG_SIDE, 2 * side), 2 * side, side)


def _tokenizer(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {"type": "open_clip", "context_length": 77}
    context_length, vocab_size = config["text_cfg"]["context_length"], config["text_cfg"]["vocab_size"]
    if vocab_size == _CLIP_TOKENS:
        return {"type": "open_clip", "context_length": context_length}
    return {"type": "none", "context_length": context_length, "vocab_size": vocab_size}


def _first_sentence(error: Exception) -> str:
    return re.split(r"(?<=[.:])\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".:")
