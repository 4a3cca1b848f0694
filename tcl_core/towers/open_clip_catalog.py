"""What open_clip knows by name, judged without building it in memory or asking a hub."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import open_clip
import torch

from tcl_core.errors import WeightsError
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["PretrainedClip", "architectures", "clip_config", "pretrained_clip", "refusal"]

_QUICK = "-quickgelu"
_HUB = "https://huggingface.co"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class PretrainedClip:
    """Published weights of a configuration.

    Attributes:
        architecture: name of open_clip's configuration.
        tag: name of the weights.
        config: keyword arguments of ``open_clip.CLIP``, with the activation that the weights were trained with.
        urls: where the file may be, the best first; a file of the hub may have been published in one format or another.
        mean: of red, green, blue in ``[0, 1]``.
        std: of red, green, blue in ``[0, 1]``.
        note: what differs from the name that was asked for, empty if nothing does.
    """

    architecture: str
    tag: str
    config: Mapping[str, Any]
    urls: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    note: str = ""


@cache
def architectures() -> tuple[str, ...]:
    """Names of open_clip's configurations, sorted."""
    return tuple(sorted(open_clip.list_models()))


def clip_config(architecture: str) -> dict[str, Any]:
    """Keyword arguments of ``open_clip.CLIP``.

    Raises:
        WeightsError: open_clip has no such configuration, or it is not one that can be used.
    """
    reason = refusal(architecture)
    if reason is not None:
        raise WeightsError(
            f"the CLIP {architecture} cannot be used: {reason}; choose a plain ViT, such as ViT-B-16-quickgelu"
        )
    config = dict(open_clip.get_model_config(architecture) or {})
    # It says which class open_clip builds, where it is there at all.
    config.pop("custom_text", None)
    return config


@cache
def refusal(architecture: str) -> str | None:
    """Why a configuration cannot be used, as a clause; ``None`` if it can.

    The image tower has to be open_clip's vision transformer with a projection, and the text tower one that open_clip
    builds itself. Building happens on the meta device, which takes no memory.

    Raises:
        WeightsError: open_clip has no such configuration.
    """
    # open_clip would fetch what "hf-hub:" names.
    if architecture not in architectures():
        near = difflib.get_close_matches(architecture, architectures(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise WeightsError(f"open_clip {open_clip.__version__} has no configuration {architecture!r}{hint}")
    config = dict(open_clip.get_model_config(architecture) or {})
    if not config.get("custom_text"):
        config.pop("custom_text", None)
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if "multimodal_cfg" in config:
        return "it pools its tokens by attention and writes captions (CoCa)"
    # These would be fetched while they are built.
    if text.get("hf_model_name"):
        return f"its text tower is the Hugging Face model {text['hf_model_name']}, which open_clip would fetch"
    if vision.get("timm_model_name"):
        return f"its image tower is timm's {vision['timm_model_name']}"
    if isinstance(vision.get("layers"), list):
        return "its image tower is a ResNet"
    # The blocks of a tower are all of one kind, so that two say what all of them would, in a tenth of the time.
    for tower in (vision, text):
        tower["layers"] = min(tower.get("layers", 2), 2)
    try:
        with torch.device("meta"):
            FrozenClip(open_clip.CLIP(**config))
    except WeightsError as error:
        return str(error)
    # open_clip checks its configuration by assertions and by failing somewhere inside.
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        return f"open_clip builds it by other means ({type(error).__name__})"
    return None


def pretrained_clip(architecture: str, tag: str) -> PretrainedClip:
    """Look up published weights.

    open_clip names some configurations twice, with GELU and with QuickGELU. Weights work with the activation alone that
    they were trained with, so that is taken whichever of the two was asked for, and the note says so.

    Raises:
        WeightsError: the configuration cannot be used, or there are no such weights for it.
    """
    config = clip_config(architecture)
    plain = architecture.removesuffix(_QUICK)
    entry = next((found for name in (architecture, plain, plain + _QUICK) if (found := _entry(name, tag))), None)
    if entry is None:
        tags = sorted({*open_clip.list_pretrained_tags_by_model(architecture), *_tags(plain), *_tags(plain + _QUICK)})
        near = difflib.get_close_matches(tag, tags, n=1, cutoff=0.75)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = f"known are: {', '.join(tags)}" if tags else "none are known, so give a file: " + architecture + "=FILE"
        raise WeightsError(f"open_clip knows no weights {tag!r} of {architecture}{hint}; {known}")
    quick = bool(entry.get("quick_gelu"))
    note = ""
    if quick != bool(config.get("quick_gelu")):
        used, named = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
        note = f"the weights {tag} were trained with {used}, which is used instead of the {named} of {architecture}"
    return PretrainedClip(
        architecture=architecture,
        tag=tag,
        config={**config, "quick_gelu": quick},
        urls=_urls(entry),
        mean=_triple(entry["mean"]),
        std=_triple(entry["std"]),
        note=note,
    )


def _tags(architecture: str) -> list[str]:
    return open_clip.list_pretrained_tags_by_model(architecture) if architecture in architectures() else []


def _entry(architecture: str, tag: str) -> dict[str, Any]:
    return open_clip.get_pretrained_cfg(architecture, tag) if tag in _tags(architecture) else {}


def _urls(entry: Mapping[str, Any]) -> tuple[str, ...]:
    hub = str(entry.get("hf_hub") or "")
    if not hub:
        return (str(entry["url"]),)
    # "org/name/" means the usual file names, "org/name/file" another one.
    repository, _, name = hub.rpartition("/")
    names = (name,) if name else _WEIGHTS
    return tuple(f"{_HUB}/{repository}/resolve/main/{file}" for file in names)


def _triple(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
