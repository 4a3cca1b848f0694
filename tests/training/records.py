"""Records of the official training, and the model that they start from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.methods.tcl import TCL, TCLConfig, frozen_clip_state_dict, learned_state_dict_from_upstream
from tcl_core.methods.tcl.training import Batch
from tcl_core.towers.clip_config import clip_config_from_state_dict
from tcl_core.towers.open_clip_vit import FrozenClip
from training.config import OptimizerSettings, ScheduleSettings, Stage, TrainPhase

DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "tcl_mini"
NAMED = os.environ.get("TRAIN_PARITY_DIR")
FOLDERS = [Path(NAMED)] if NAMED else [DATA / "training" / name for name in ("tcl_steps", "tcl_global6")]


@dataclass(frozen=True)
class Record:
    """A record in memory; every size is read from it."""

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Record:
        return cls(json.loads((folder / "steps.json").read_text()), load_file(folder / "steps.safetensors"))

    @property
    def batch_size(self) -> int:
        return self.tensors["images"].shape[1]

    def phase(self) -> TrainPhase:
        """The record's training as a phase of a recipe."""
        optimizer, schedule, steps = self.numbers["optimizer"], self.numbers["schedule"], self.numbers["steps"]
        total, first = max(steps, schedule["total_steps"]), self.numbers["ust_steps"]
        stages = [Stage(stage="ust", steps=first)] if first else []
        stages += [Stage(stage="full", steps=total - first)] if total > first else []
        return TrainPhase(
            name="record",
            stages=stages,
            batch=self.batch_size,
            optimizer=OptimizerSettings(
                betas=tuple(optimizer["betas"]), eps=optimizer["eps"], weight_decay=optimizer["weight_decay"]
            ),
            schedule=ScheduleSettings(
                lr=schedule["base_lr"],
                min_lr=schedule["min_lr"],
                warmup=schedule["warmup_steps"],
                start_factor=schedule["start_factor"],
            ),
            clip_norm=self.numbers["clip_grad_norm"],
            precision="float32",
        )

    def batch(self, step: int, rank: int = 0, processes: int = 1) -> Batch:
        """A process' part of a step's pairs."""
        size = self.batch_size // processes
        images, tokens, noise = (
            self.tensors[name][step, rank * size : (rank + 1) * size] for name in ("images", "text", "gumbel_u")
        )
        return Batch(images, tokens.long(), noise)


def recorded_model() -> TCL:
    """The model that all records start from."""
    numbers = json.loads((MODEL / "records.json").read_text())
    state = torch.load(MODEL / "full.pth", weights_only=True, map_location="cpu")["model"]
    frozen = frozen_clip_state_dict(state)
    model = open_clip.CLIP(**clip_config_from_state_dict(frozen, text_heads=numbers["clip_args"][8]))
    model.load_state_dict(frozen, strict=False)
    clip = FrozenClip(model)
    decoder = {
        key.rsplit("/", 1)[1]: value for key, value in numbers.items() if key.startswith("config/masker/decoder")
    }
    config = TCLConfig(
        ie_freeze=numbers["config/ie_freeze"],
        decoder_layers=decoder["n_layers"],
        decoder_double=decoder["double"],
        decoder_kernel=decoder["kernel_size"],
        gumbel_tau=numbers["config/masker/sim2mask/gumbel_tau"],
        tcl_weight=numbers["config/tcl_w"],
        area_weight=numbers["config/area_w"],
        tv_weight=numbers["config/tv_w"],
    )
    tcl = TCL(clip, config)
    tcl.load_learned_state_dict(learned_state_dict_from_upstream(state, clip.depth))
    return tcl
