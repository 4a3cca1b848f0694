"""Attributes that a prompt does not name are taken out of its embedding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tcl_core.errors import WeightsError
from tcl_core.models import load_model
from tcl_core.models.modelfile import read_model_file, write_model_file
from tcl_core.playground import COLORS, KINDS
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.text_debiasing import PromptDebiasing, attribute_axes
from tests.tiny_model import write_tiny_model

WORDS = {"debiasing": {"words": ["red", "green", "blue"], "text_set": "text"}}


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_what_is_left_is_the_residual_of_a_regression_on_the_axes() -> None:
    axes = torch.linalg.qr(unit(3, 8).T).Q.T
    embeddings = unit(5, 8, seed=1)
    left = PromptDebiasing(frozenset(), axes)(["a"] * 5, embeddings).numpy()
    for before, after in zip(embeddings.numpy(), left, strict=True):
        coefficients = np.linalg.lstsq(axes.numpy().T, before, rcond=None)[0]
        residual = before - axes.numpy().T @ coefficients
        np.testing.assert_allclose(after, residual / np.linalg.norm(residual), atol=1e-6)


@pytest.mark.parametrize("prompt", ["red cup", "a RED cup", "cup, red-striped"])
def test_a_named_attribute_stays(prompt: str) -> None:
    embeddings = unit(1, 8)
    debias = PromptDebiasing(frozenset({"red"}), unit(1, 8, seed=1))
    assert torch.equal(debias([prompt], embeddings), embeddings)
    assert not torch.allclose(debias(["a colored cup"], embeddings), embeddings, atol=1e-3)


def test_the_axes_are_where_the_values_differ_and_not_the_things() -> None:
    things, values = unit(4, 16), unit(3, 16, seed=1)
    embeddings = {
        # Not every thing comes in every value.
        str(v): {str(t): things[t] + 3 * values[v] for t in range(4) if (t + v) % 4}
        for v in range(3)
    }
    axes = attribute_axes(embeddings, {str(t): thing for t, thing in enumerate(things)}, 2)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-6)
    between = torch.stack([values[0] - values[1], values[1] - values[2]])
    np.testing.assert_allclose(between @ axes.T @ axes, between, atol=1e-5)


@pytest.mark.parametrize("count", [0, 2])
def test_there_are_fewer_axes_than_values(count: int) -> None:
    plain = {"cup": torch.zeros(3)}
    values = {name: {"cup": unit(3, seed=seed)} for seed, name in enumerate(("red", "blue"))}
    with pytest.raises(ValueError, match="from 1 to 1"):
        attribute_axes(values, plain, count)


def test_no_prompts_are_no_embeddings() -> None:
    assert PromptDebiasing(frozenset({"red"}), unit(1, 8))([], torch.zeros(0, 8)).shape == (0, 8)


def test_a_model_file_carries_it(tmp_path: Path) -> None:
    plain = read_model_file(write_tiny_model(tmp_path / "plain.safetensors"))
    axes = torch.linalg.qr(unit(2, 32).T).Q.T
    path = tmp_path / "debiased.safetensors"
    metadata = dataclasses.replace(plain.metadata, **WORDS)
    write_model_file(path, metadata, plain.learned, plain.clip, debiasing_axes=axes)
    before, after = (Segmenter(load_model(str(file), device="cpu")) for file in (plain.path, path))
    prompts = ["red cat", "cat", "sky"]
    assert read_model_file(path).metadata == metadata
    biased, embedded = (segmenter.embed_prompts(prompts).tensors()["text"] for segmenter in (before, after))
    assert (biased @ axes.T).abs().amax(dim=1).min() > 0.05
    np.testing.assert_allclose(embedded[1:] @ axes.T, 0, atol=1e-6)
    assert torch.equal(embedded[0], biased[0])
    np.testing.assert_allclose(embedded.norm(dim=-1), 1, atol=1e-6)


def test_words_and_axes_come_together(tmp_path: Path) -> None:
    plain = read_model_file(write_tiny_model(tmp_path / "plain.safetensors"))
    target = tmp_path / "m.safetensors"
    with pytest.raises(WeightsError, match="debiasing needs"):
        write_model_file(target, plain.metadata, plain.learned, plain.clip, debiasing_axes=unit(1, 32))
    with pytest.raises(WeightsError, match="debiasing needs"):
        write_model_file(target, dataclasses.replace(plain.metadata, **WORDS), plain.learned, plain.clip)
    with pytest.raises(WeightsError, match=r"debiasing\.axes"):
        write_model_file(target, plain.metadata, {"debiasing.axes": unit(1, 32)}, plain.clip)
    lists = ([], "red", [1], ["Red"], ["light blue"], ["red-brown"], [""])
    for bad in ({"word": ["red"]}, {"words": ["red"]}, *({"words": words, "text_set": "text"} for words in lists)):
        with pytest.raises(WeightsError, match="debiasing"):
            metadata = dataclasses.replace(plain.metadata, debiasing=bad)
            write_model_file(target, metadata, plain.learned, plain.clip, debiasing_axes=unit(1, 32))
    assert not target.exists()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (unit(1, 31), r"\[A, 32\]"),
        (unit(32, 32), r"\[A, 32\]"),
        (unit(32), r"\[A, 32\]"),
        (2 * unit(1, 32), "orthonormal"),
        (unit(1, 32).expand(2, 32), "orthonormal"),
    ],
)
def test_axes_that_do_not_fit_are_refused_with_the_file(tmp_path: Path, axes: torch.Tensor, message: str) -> None:
    plain = read_model_file(write_tiny_model(tmp_path / "plain.safetensors"))
    path = tmp_path / "bad.safetensors"
    metadata = dataclasses.replace(plain.metadata, **WORDS)
    write_model_file(path, metadata, plain.learned, plain.clip, debiasing_axes=axes)
    with pytest.raises(WeightsError, match=rf"bad\.safetensors: debiasing: axes .*{message}"):
        load_model(str(path), device="cpu")


@pytest.mark.slow
def test_the_embedded_model_asks_for_things_without_their_colors() -> None:
    model = load_model("playground", device="cpu")
    assert model.debiasing is not None and model.debiasing.words == set(COLORS)
    segmenter = Segmenter(model)
    plain = segmenter.embed_prompts(KINDS).tensors()["text"]
    assert (plain @ model.debiasing.axes.T).abs().max() < 1e-5
    for kind in KINDS:
        colored = segmenter.embed_prompts([f"{color} {kind}" for color in COLORS]).tensors()["text"]
        spread = colored - colored.mean(dim=0)
        # Axes of no meaning would hold 6 parts of 192.
        assert (spread @ model.debiasing.axes.T).square().sum() > 0.6 * spread.square().sum()
