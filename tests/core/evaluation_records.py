"""The record of the official evaluation, and the model that it was made with.

The folder is ``tests/data/eval_mini``, or the one that the environment variable ``EVAL_PARITY_DIR`` names; its model is
``tests/data/tcl_mini``, or the one of ``TCL_PARITY_DIR``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tcl_core.evaluation.datasets import class_list
from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.model import TCLPrompts
from tcl_core.models import Model
from tcl_core.models.metadata import ModelMetadata, Preprocess

DATA = Path(__file__).parents[1] / "data"
FOLDER = Path(os.environ.get("EVAL_PARITY_DIR") or DATA / "eval_mini")
if not (FOLDER / "expected.json").is_file():
    raise FileNotFoundError(f"there is no {FOLDER / 'expected.json'}; does EVAL_PARITY_DIR name a record?")

EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
SETTINGS = sorted(EXPECTED["results"])


@cache
def label_maps() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "label_maps.npz") as record:
        return {key: record[key] for key in record}


class RecordedTexts(TCL):
    """TCL that reads class names as the token ids that the record gives them, instead of by a tokenizer."""

    tokens: dict[str, torch.Tensor]

    def unknown_words(self, text: str) -> list[str]:
        return [] if text in self.tokens else [text]

    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> TCLPrompts:
        if not prompts:
            return super().embed_prompts(prompts, templates)
        return TCLPrompts(self.embed_tokens(torch.stack([self.tokens[prompt] for prompt in prompts])))


@cache
def _method() -> TCL:
    from tests.core.test_tcl_parity import official

    return official().method


def recorded_model(data_set: str, protocol: str) -> Model:
    """The record's model, which knows the classes of a data set."""
    chosen = EXPECTED["protocols"][protocol]
    preprocess = Preprocess(
        tuple(EXPECTED["mean"]),
        tuple(EXPECTED["std"]),
        short_side=min(chosen["img_scale"]),
        max_long_side=max(chosen["img_scale"]),
        window=chosen["window"],
        stride=chosen["stride"],
    )
    method = RecordedTexts(_method().clip, _method().config)
    method.load_learned_state_dict(_method().learned_state_dict())
    with np.load(FOLDER / "class_embeddings.npz") as record:
        tokens = torch.from_numpy(record[f"tokens/{data_set}"]).long()
    prompts = [prompt for _, prompt in class_list(data_set).vocabulary.prompts]
    assert len(prompts) == len(tokens)
    method.tokens = dict(zip(prompts, tokens, strict=True))
    return Model(
        name="record",
        method=method.eval().requires_grad_(False),
        preprocess=preprocess,
        templates="identity",
        background_threshold={},
        weights_sha256="0" * 64,
        device=torch.device("cpu"),
        precision=torch.float32,
        metadata=ModelMetadata(name="record", preprocess=preprocess, method="tcl"),
    )
