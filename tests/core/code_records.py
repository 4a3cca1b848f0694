"""Records of the official CoDe: a model with random weights, its inputs, and the numbers that it produced.

The folder is the one that ``CODE_PARITY_DIR`` names, or ``shared/parity/code_small`` beside the repository. All sizes
are read from its files.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.methods.code import CoDe, CoDeConfig
from tcl_core.methods.code.batch import Batch
from tcl_core.methods.code.nouns import MOST_NAMED, noun_ids
from tcl_core.methods.code.upstream import learned_code_from_upstream
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import OpenClipTokenizer

__all__ = ["BESIDE", "FOLDER", "CodeRecord", "missing_files"]

BESIDE = Path(__file__).parents[3] / "shared" / "parity"
FOLDER = Path(os.environ.get("CODE_PARITY_DIR") or BESIDE / "code_small")
_FILES = ("clip.safetensors", "learned.safetensors", "records.json", "records.safetensors", "state_dict_shapes.json")
_IMAGE_HEAD = 64


def missing_files(folder: Path) -> list[str]:
    """The files of a record that are not there.

    Raises:
        FileNotFoundError: there are some, in a folder that ``CODE_PARITY_DIR`` names.
    """
    absent = [name for name in _FILES if not (folder / name).is_file()]
    if absent and "CODE_PARITY_DIR" in os.environ and folder == FOLDER:
        raise FileNotFoundError(f"CODE_PARITY_DIR is set, but there is no {folder / absent[0]}")
    return absent


@dataclass(frozen=True)
class CodeRecord:
    """A record in memory."""

    folder: Path

    @cached_property
    def numbers(self) -> dict[str, Any]:
        return json.loads((self.folder / "records.json").read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "records.safetensors")

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """Names and shapes of all tensors of the official checkpoint."""
        return json.loads((self.folder / "state_dict_shapes.json").read_text(encoding="utf-8"))

    @cached_property
    def learned(self) -> dict[str, Tensor]:
        return load_file(self.folder / "learned.safetensors")

    @cached_property
    def frozen(self) -> dict[str, Tensor]:
        """The CLIP by open_clip's names; rows of words that the record does not use hold noise."""
        tensors = {name: tensor.float() for name, tensor in load_file(self.folder / "clip.safetensors").items()}
        ids, values = tensors.pop("token_rows.ids").long(), tensors.pop("token_rows.values")
        vocabulary, width = self.numbers["clip_args"][6:8]
        table = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(0))
        table[ids] = values
        return tensors | {"token_embedding.weight": table}

    def setting(self, name: str) -> Any:
        return self.numbers[f"cfg/{name}"]

    def clip(self) -> FrozenClip:
        embed, side, layers, width, patch, context, vocabulary, text_width, text_heads, text_layers = self.numbers[
            "clip_args"
        ]
        vision = {"image_size": side, "layers": layers, "width": width, "patch_size": patch, "head_width": _IMAGE_HEAD}
        text = {"context_length": context, "vocab_size": vocabulary, "width": text_width, "heads": text_heads}
        model = open_clip.CLIP(embed, vision, text | {"layers": text_layers}, quick_gelu=True)
        model.load_state_dict(self.frozen)
        return FrozenClip(model, OpenClipTokenizer(context))

    def config(self, **changes: Any) -> CoDeConfig:
        """The record's settings; its program counts an image's other nouns as negatives."""
        decoder, mask = "masker/decoder/", "masker/sim2mask/"
        assert self.setting("ie_ignore_last_attn")
        assert self.setting("use_region_highlighting_prompt") and self.setting("use_word_highlighting_prompt")
        assert (self.setting(f"{decoder}act"), self.setting(f"{decoder}norm")) == ("gelu", "ln")
        settings = {
            "ie_freeze": self.setting("ie_freeze"),
            "decoder_layers": self.setting(f"{decoder}n_layers"),
            "decoder_double": self.setting(f"{decoder}double"),
            "decoder_kernel": self.setting(f"{decoder}kernel_size"),
            "init_w": self.setting(f"{mask}init_w"),
            "init_b": self.setting(f"{mask}init_b"),
            "gumbel_tau": self.setting(f"{mask}gumbel_tau"),
            "tcl_weight": self.setting("w_tcl"),
            "area_prior": self.setting("pos_area"),
            "area_weight": self.setting("w_pos_area"),
            "negative_area_weight": self.setting("w_neg_area"),
            "tv_weight": self.setting("w_tv"),
            "prompt_weight": self.setting("w_kg"),
            "text_weight": self.setting("w_tseg"),
            "codecomposition_weight": self.setting("w_hcl"),
            "context_tokens": len(self.learned["clip_text_encoder.prompt_learner.ctx"]),
            "nouns": len(self.numbers["noun_lists"]),
            "region_prompt_size": self.learned["learnable_image_bg"].shape[-1],
            "negatives": "all",
        }
        return CoDeConfig(**{**settings, **changes})

    def model(self, **changes: Any) -> CoDe:
        clip = self.clip()
        code = CoDe(clip, self.config(**changes))
        code.load_learned_state_dict(learned_code_from_upstream(self.learned, clip.depth))
        return code

    def batch(self) -> Batch:
        """The inputs; the record counts pairs noun by noun, this project image by image."""
        numbers, tensors = self.numbers, self.tensors
        tokenizer = OpenClipTokenizer(numbers["clip_args"][5])
        captions, lists = numbers["captions"], numbers["noun_lists"]
        nouns = [list(chosen) for chosen in zip(*lists, strict=True)]
        drawn = [
            [numbers["kg_templates"][k * len(captions) + b].replace("{}", noun) for k, noun in enumerate(chosen)]
            for b, chosen in enumerate(nouns)
        ]
        count = len(lists) * len(captions)
        noise = self.by_image(tensors["gumbel_u"][range(count), range(count)])
        return Batch(
            images=tensors["image"],
            tokens=tokenizer(captions),
            nouns=torch.stack([tokenizer(chosen) for chosen in nouns]),
            templates=torch.stack([tokenizer(texts) for texts in drawn]),
            labels=tensors["pseudo_text_mask"].long(),
            ids=torch.stack([noun_ids(chosen, len(chosen)) for chosen in nouns]),
            named=torch.stack([noun_ids(found, MOST_NAMED) for found in numbers["all_nouns"]]),
            noise=noise,
        )

    def by_image(self, pairs: Tensor) -> Tensor:
        """From ``[K B, ...]``, noun by noun, to ``[B, K, ...]``."""
        return pairs.unflatten(0, (len(self.numbers["noun_lists"]), -1)).transpose(0, 1).contiguous()
