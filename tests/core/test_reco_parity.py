"""ReCo against numbers that the authors' program produced from given feature maps.

The folder is the one that ``RECO_PARITY_DIR`` names, or ``shared/parity/reco/small`` beside the repository. All sizes
and names are read from its files.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.methods.reco.cosegmentation import (
    Cosegmentation,
    context_weights,
    cosegment,
    most_central,
    nearest_images,
    pixel_weights,
    reference_scores,
    seed_features,
    text_attention,
)

FOLDER = Path(os.environ.get("RECO_PARITY_DIR") or Path(__file__).parents[3] / "shared" / "parity" / "reco" / "small")
# Upstream has one alias, which is written into its program.
ALIASES = {"vegetation": "tree"}
TOLERANCE = 1e-6

if not (FOLDER / "records.json").is_file():
    if "RECO_PARITY_DIR" in os.environ:
        raise FileNotFoundError(f"RECO_PARITY_DIR is set, but there is no {FOLDER / 'records.json'}")
    pytest.skip(f"no record of ReCo at {FOLDER}; name one with RECO_PARITY_DIR", allow_module_level=True)

NUMBERS: dict[str, Any] = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
TENSORS = load_file(FOLDER / "records.safetensors")
CONTEXTS: list[str] = NUMBERS["context_categories"]
TARGETS: list[str] = NUMBERS["categories"]
ORDINARY = [name for name in TARGETS if name not in CONTEXTS and name not in ALIASES]
LOOKED_INTO = [name for name in ORDINARY if f"inter/{name}/weights" in TENSORS]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def maps(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features, dense features and the text of a category."""
    return TENSORS[f"archive/{name}/features"], TENSORS[f"archive/{name}/dense"], TENSORS[f"text/{name}"]


@cache
def contexts(before: str | None = None) -> Tensor:
    """References of the contexts in front of one, each found without the pixels of the earlier ones."""
    found = TENSORS[f"context_ref/{CONTEXTS[0]}"].new_zeros(0, NUMBERS["channels"])
    for name in CONTEXTS:
        if name == before:
            break
        found = torch.cat([found, fitted(name, found).reference[None]])
    return found


def fitted(name: str, eliminated: Tensor, *, upstream_slice: bool = True) -> Cosegmentation:
    features, dense, text = maps(name)
    weights = pixel_weights(features, dense, text, eliminated)
    return cosegment(features, weights, upstream_slice=upstream_slice)


def test_the_record_is_complete() -> None:
    """A record that lost its tensors must not pass for want of comparisons."""
    assert len(CONTEXTS) >= 2 and ORDINARY and LOOKED_INTO
    assert NUMBERS["fixed_differs"] and all(f"fixed/{name}/ref" in TENSORS for name in LOOKED_INTO)
    features = TENSORS[f"archive/{ORDINARY[0]}/features"]
    assert tuple(features.shape) == (NUMBERS["n_imgs"], NUMBERS["channels"], *NUMBERS["grid"])
    assert NUMBERS["temperature"] == 10.0


def test_retrieval() -> None:
    embeddings, text = TENSORS["retrieve/image_embedding"], TENSORS["retrieve/text_embedding"]
    values, places = nearest_images(embeddings, text, NUMBERS["k"])
    assert torch.equal(places, TENSORS["retrieve/topk"])
    assert_near(values, embeddings[places] @ text)
    assert len(nearest_images(embeddings[:2], text, NUMBERS["k"])[1]) == 2


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_eliminate_the_earlier_ones(name: str) -> None:
    assert_near(fitted(name, contexts(before=name)).reference, TENSORS[f"context_ref/{name}"])


@pytest.mark.parametrize("name", TARGETS)
def test_references(name: str) -> None:
    expected = TENSORS[f"ref/{name}"]
    same = ALIASES.get(name, name)
    found = contexts()[CONTEXTS.index(same)] if same in CONTEXTS else fitted(same, contexts()).reference
    assert_near(found, expected)


@pytest.mark.parametrize("name", LOOKED_INTO)
def test_weights_and_seeds(name: str) -> None:
    features, dense, text = maps(name)
    size, expected = tuple(NUMBERS["grid"]), {key: TENSORS[f"inter/{name}/{key}"] for key in RECORDED}
    assert_near(text_attention(dense, text[None], size)[:, 0], expected["text_attention"])
    # The record holds what the contexts claim, before it is taken from 1.
    assert_near(context_weights(features, contexts()), 1 - expected["context_weights"])
    weights = pixel_weights(features, dense, text, contexts())
    assert_near(weights, expected["weights"])
    found = cosegment(features, weights, upstream_slice=True)
    assert torch.equal(found.seeds, expected["seed_index"])
    picked = seed_features(features, found.seeds)
    assert_near(picked, expected["seed_features"])
    assert_near(F.normalize(picked[most_central(features, found.seeds)], dim=0), expected["ref_winner"])


RECORDED = ("text_attention", "context_weights", "weights", "seed_index", "seed_features", "ref_winner")


@pytest.mark.parametrize("name", LOOKED_INTO)
def test_the_corrected_slice(name: str) -> None:
    """The contexts that go in are the recorded ones, which were made with the slip."""
    eliminated = torch.stack([TENSORS[f"context_ref/{context}"] for context in CONTEXTS])
    found = fitted(name, eliminated, upstream_slice=False)
    assert torch.equal(found.seeds, TENSORS[f"fixed/{name}/seed_index"])
    assert_near(found.reference, TENSORS[f"fixed/{name}/ref"])
    assert not torch.equal(found.reference, TENSORS[f"ref/{name}"])


def test_scores() -> None:
    size = tuple(NUMBERS["query_size"])
    references = torch.stack([TENSORS[f"ref/{name}"] for name in TARGETS])
    texts = torch.stack([TENSORS[f"text/{name}"] for name in TARGETS])
    seen = F.interpolate(reference_scores(TENSORS["query/features"], references), size=size, mode="bilinear")
    assert_near(seen, TENSORS["query/scores_no_text"])
    told = F.interpolate(text_attention(TENSORS["query/dense"], texts), size=size, mode="bilinear")
    assert_near(seen * told, TENSORS["query/scores"])
    assert torch.equal((seen * told).argmax(dim=1), TENSORS["query/argmax"])
