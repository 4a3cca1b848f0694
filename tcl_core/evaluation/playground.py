"""Score a model on held-out playground scenes, and measure what its parts contribute."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from tcl_core.evaluation.miou import MeanIoU
from tcl_core.methods.semantic_unit import PIXELS, UNIT
from tcl_core.models import Model
from tcl_core.playground import CLASS_NAMES, KINDS, Scene, draw_scene, scene_rng
from tcl_core.playground.scenes import Combinations
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Label, Vocabulary

__all__ = [
    "SEEDS",
    "VARIANTS",
    "EvaluationRow",
    "Split",
    "Variant",
    "evaluate_playground",
    "format_rows",
    "held_out_scene",
    "own_variants",
    "rows_to_json",
    "variants_of",
]

Split = Literal["validation", "test"]
"""Scenes to make choices with, and scenes for the published table. Neither is used in training."""

SEEDS: dict[Split, dict[Combinations, int]] = {
    "validation": {"seen": 19_101, "held-out": 19_102, "all": 19_103},
    "test": {"seen": 19_201, "held-out": 19_202, "all": 19_203},
}
"""One seed for each set of scenes; those of projects are in `tcl_core.evaluation.projects`."""


@dataclass(frozen=True)
class Variant:
    """Settings of the segmenter for a row of the table.

    Attributes:
        refine: whether PAMR is used.
        options: values of the method's options.
        debias: whether prompts are debiased, for models that support it.
    """

    refine: bool
    options: Mapping[str, Any]
    debias: bool = True


VARIANTS: dict[str, Variant] = {
    "dense baseline: CLIP's value path": Variant(refine=False, options={"kp_weight": 1.0}),
    "TCL": Variant(refine=False, options={"kp_weight": 0.0}),
    "TCL + KP": Variant(refine=False, options={"kp_weight": 0.3}),
    "TCL + PAMR": Variant(refine=True, options={"kp_weight": 0.0}),
    "TCL + PAMR + KP": Variant(refine=True, options={"kp_weight": 0.3}),
    "TCL + PAMR, prompts not debiased": Variant(refine=True, options={"kp_weight": 0.0}, debias=False),
    "TCL + PAMR + unit": Variant(refine=True, options={"kp_weight": 0.0, **UNIT}),
}
"""The rows of the table of TCL; those that do not name the adaptive semantic unit are without it, see `variants_of`."""

PLAIN_VARIANTS: dict[str, Variant] = {
    "as it is": Variant(refine=False, options={}),
    "+ PAMR": Variant(refine=True, options={}),
    "+ PAMR + unit": Variant(refine=True, options=UNIT),
}
"""The rows of the table of any other method."""


@dataclass(frozen=True)
class EvaluationRow:
    """Dataset-level mean IoU of one variant, in percent.

    Attributes:
        variant: a key of ``VARIANTS`` or ``PLAIN_VARIANTS``.
        seen: over all classes, on new scenes of combinations that occur in training.
        seen_kinds: over the kinds of objects alone.
        seen_stuff: over the background stuff alone.
        held_out: over all classes, on scenes whose every object has a combination never seen in training.
        held_out_kinds: over the kinds of objects alone.
        held_out_stuff: over the background stuff alone.
    """

    variant: str
    seen: float
    seen_kinds: float
    seen_stuff: float
    held_out: float
    held_out_kinds: float
    held_out_stuff: float

    @property
    def loss(self) -> float:
        """Points lost on combinations never seen in training."""
        return self.seen - self.held_out


def held_out_scene(combinations: Combinations, index: int, split: Split = "validation") -> Scene:
    """Scene ``index`` of the evaluation; its seed is not used anywhere else."""
    return draw_scene(scene_rng(SEEDS[split][combinations], index), combinations=combinations)


def evaluate_playground(
    model: Model,
    scenes: int = 500,
    progress: Callable[[int, int], object] | None = None,
    split: Split = "validation",
    variants: Mapping[str, Variant] | None = None,
) -> list[EvaluationRow]:
    """Score a model on scenes that were never used for training.

    All classes of the toy world compete in every image, without a background; plain arg-max decides.

    Args:
        model: the model to score.
        scenes: number of scenes in each of the two sets.
        progress: called with the scenes done and the total.
        split: which scenes.
        variants: rows of the table by name; ``None`` for `variants_of` the model.

    Returns:
        One row per variant; variants without debiasing only for models that debias prompts.
    """
    vocabulary = Vocabulary(tuple(Label(name, (name,)) for name in CLASS_NAMES), background=False)
    biased = replace(model, debiasing=None)
    segmenters = {
        name: Segmenter(model if variant.debias else biased, refine=variant.refine, options=variant.options)
        for name, variant in (variants_of(model) if variants is None else variants).items()
        if variant.debias or model.debiasing is not None
    }
    # Features depend on the refinement alone among the settings that differ.
    encoders = {segmenter.refine: segmenter for segmenter in segmenters.values()}
    sets: tuple[Combinations, ...] = ("seen", "held-out")
    metrics = {(name, which): MeanIoU(len(CLASS_NAMES)) for name in segmenters for which in sets}
    done = 0
    for which in sets:
        for start in range(0, scenes, 16):
            batch = [held_out_scene(which, index, split) for index in range(start, min(start + 16, scenes))]
            images = [scene.image for scene in batch]
            features = {refine: encoder.encode_batch(images) for refine, encoder in encoders.items()}
            for name, segmenter in segmenters.items():
                for scene, feature in zip(batch, features[segmenter.refine], strict=True):
                    metrics[name, which].update(scene.label_map, segmenter.segment(feature, vocabulary).label_map)
            done += len(batch)
            if progress is not None:
                progress(done, scenes * len(sets))
    kinds, stuff = slice(0, len(KINDS)), slice(len(KINDS), None)
    return [
        EvaluationRow(
            name, *(100 * metrics[name, which].compute(part) for which in sets for part in (slice(None), kinds, stuff))
        )
        for name in segmenters
    ]


def variants_of(model: Model) -> dict[str, Variant]:
    """The rows of a model's table; whether one has the adaptive semantic unit does not depend on the model's options.

    Example:
        >>> from tcl_core.models import load_model
        >>> list(variants_of(load_model("naclip:playground")))
        ['as it is', '+ PAMR', '+ PAMR + unit']
    """
    own = model.method.options_class.model_fields
    grouped = UNIT.keys() <= own.keys()
    found = {}
    for name, variant in _variants(model).items():
        if grouped:
            found[name] = replace(variant, options={**PIXELS, **variant.options})
        elif not UNIT.keys() & variant.options.keys():
            found[name] = variant
    return found


def own_variants(model: Model) -> dict[str, Variant]:
    """The rows with a model's own masks alone, without and with refinement, and with the unit of the model's options.

    Example:
        >>> from tcl_core.models import load_model
        >>> list(own_variants(load_model("playground")))
        ['TCL', 'TCL + PAMR']
    """
    # Of TCL's rows, those without anything of CLIP's own.
    return {
        name: variant
        for name, variant in _variants(model).items()
        if variant.debias and not any(variant.options.values())
    }


def _variants(model: Model) -> dict[str, Variant]:
    fitting = VARIANTS if "kp_weight" in model.method.options_class.model_fields else PLAIN_VARIANTS
    return {name.replace("TCL", _title(model)): variant for name, variant in fitting.items()}


def _title(model: Model) -> str:
    return "TCL" if model.method.name == "tcl" else model.method.name


def format_rows(rows: list[EvaluationRow]) -> str:
    """The table as Markdown."""
    lines = [
        "| | seen: all | kinds | stuff | held out: all | kinds | stuff | lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = (row.seen, row.seen_kinds, row.seen_stuff, row.held_out, row.held_out_kinds, row.held_out_stuff)
        lines.append(f"| {row.variant} | " + " | ".join(f"{np.round(x, 1):.1f}" for x in (*figures, row.loss)) + " |")
    return "\n".join(lines)


def rows_to_json(rows: list[EvaluationRow]) -> str:
    """The table as JSON, to store next to the weights."""
    return json.dumps([asdict(row) | {"lost": row.loss} for row in rows], indent=1)
