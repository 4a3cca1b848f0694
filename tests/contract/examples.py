"""What the contract suite builds from a method's `example`."""

from __future__ import annotations

import importlib.util
import itertools
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods import Features, Method, MethodOptions, PromptEmbeddings, method_class
from tcl_core.models.loading import Model
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.refinement.base import Guide, Refine
from tcl_core.refinement.pamr import Pamr
from tcl_core.vocabulary import Label, Vocabulary
from tests.missing import missing

__all__ = [
    "TEMPLATES",
    "example_image",
    "example_of",
    "example_windows",
    "model_of",
    "other_values",
    "prompts_of",
    "similarities",
    "vocabulary_of",
    "window_refiner",
]

# The words of templates need not be known to an example's towers.
TEMPLATES = ("{}",)
# Packages that the examples of some methods need.
_NEEDED = {"groupvit": "transformers"}
_PREPROCESS = Preprocess((0.48, 0.45, 0.40), (0.22, 0.23, 0.24), short_side=40, max_long_side=144, window=32, stride=16)


def example_windows(count: int = 3, size: tuple[int, int] = (40, 50)) -> Tensor:
    """Random normalized windows; equal arguments give equal windows."""
    coarse = torch.randn(count, 3, 5, 7, generator=torch.Generator().manual_seed(count))
    return torch.nn.functional.interpolate(coarse, size=size, mode="nearest")


def example_image(height: int = 50, width: int = 70, seed: int = 3) -> NDArray[np.uint8]:
    """An image with colored blocks, so that a random model finds several regions."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(-(-height // 5), 0).repeat(-(-width // 7), 1)[:height, :width])


def example_of(name: str) -> Method:
    """The example of the method ``name``; a test that needs a package which is not there is skipped."""
    if name in _NEEDED and importlib.util.find_spec(_NEEDED[name]) is None:
        missing(f"the example of {name} needs {_NEEDED[name]} (pip install tcl-annotate[test])")
    return method_class(name).example()


def prompts_of(method: Method, texts: Sequence[str] | None = None) -> PromptEmbeddings:
    """Embedded prompts, by default all of the example's."""
    return method.embed_prompts(method.example_prompts() if texts is None else texts, TEMPLATES)


def window_refiner(method: Method, windows: Tensor) -> tuple[Guide | None, Refine | None]:
    """The guide of windows and the refiner bound to it; nothing where the method does not refine there."""
    refiner = Pamr(dilations=(1, 2), iterations=2)
    guide = method.window_guide(refiner, windows)
    return guide, None if guide is None else lambda maps: refiner.refine(guide, maps)


def similarities(method: Method, features: Features, prompts: PromptEmbeddings, refine: Refine | None = None) -> Tensor:
    """The method's similarities, checked for what always holds."""
    found = method.similarities(features, prompts, refine)
    assert found.dtype == torch.float32
    assert found.shape[:2] == (len(features), len(prompts))
    assert found.isfinite().all()
    return found


def model_of(
    method: Method,
    sha256: str = "0" * 64,
    precision: torch.dtype = torch.float32,
    preprocess: Preprocess = _PREPROCESS,
    templates: str = "identity",
) -> Model:
    """A model that is made of a method and nothing else."""
    name = f"{method.name} example"
    return Model(
        name=name,
        method=method,
        preprocess=preprocess,
        templates=templates,
        background_threshold={},
        weights_sha256=sha256,
        device=torch.device("cpu"),
        precision=precision,
        metadata=ModelMetadata(name=name, preprocess=preprocess, method=method.name),
    )


def vocabulary_of(method: Method, *groups: Sequence[int], **settings: Any) -> Vocabulary:
    """A vocabulary whose labels own the example's prompts by their places.

    Args:
        method: whose prompts.
        groups: places of each label's prompts; by default the first label owns two, and each other one.
        **settings: of the vocabulary.
    """
    texts = method.example_prompts()
    chosen = groups or ((0, 1), *((place,) for place in range(2, len(texts))))
    names = ("-".join(map(str, group)) for group in chosen)
    counts: dict[str, itertools.count[int]] = {}
    labels = []
    for name, group in zip(names, chosen, strict=True):
        number = next(counts.setdefault(name, itertools.count()))
        labels.append(Label(f"label {name} {number}", tuple(texts[place] for place in group)))
    return Vocabulary(tuple(labels), **settings)


def other_values(options: MethodOptions) -> dict[str, Any]:
    """For each option a value that is allowed and not in force."""
    return {name: _other(options, name) for name in type(options).model_fields}


def _other(options: MethodOptions, name: str) -> Any:
    value, kind = getattr(options, name), type(options).model_fields[name].annotation
    tried: list[Any] = [member for part in (kind, *typing.get_args(kind)) for member in typing.get_args(part)]
    tried += list(typing.get_args(kind))
    if isinstance(value, bool):
        tried = [not value]
    elif isinstance(value, int | float):
        tried += [value / 2, value + 1, value - 1, value * 2, (value + 1) / 2, 0, 1, 2]
    for other in tried:
        try:
            changed = options.changed({name: other})
        except SettingsError:
            continue
        if getattr(changed, name) != value:
            return getattr(changed, name)
    raise AssertionError(f"no other value of the option {name!r} is known to the contract suite; add one here")
