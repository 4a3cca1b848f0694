"""What an importer finds in a checkpoint that a paper's authors published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["UpstreamModel"]


@dataclass(frozen=True)
class UpstreamModel:
    """A checkpoint in this project's terms.

    Attributes:
        learned: the method's tensors by their own names, float32.
        config: the method's settings, empty for its defaults.
        tower: ``{}`` where the CLIP is not known, ``{"config": ...}`` (open_clip's configuration of the tensors in
            ``tower_tensors``), or ``{"open_clip": ..., "pretrained": ...}`` for one that is downloaded.
        tower_config: open_clip's configuration of ``tower_tensors``, or ``None`` where there are none.
        tower_tensors: the frozen CLIP inside the checkpoint, by open_clip's names; may be empty.
        templates: name of the template set that the method is used with; empty for the default of model files.
        background_threshold: entry of a model file; empty for its default.
        preprocess: entry of a model file.
        tokenizer: entry of a model file.
    """

    learned: Mapping[str, Tensor]
    config: Mapping[str, Any]
    tower: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    tower_config: Mapping[str, Any] | None = None
    tower_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    templates: str = ""
    background_threshold: Mapping[str, float] = field(default_factory=dict)
