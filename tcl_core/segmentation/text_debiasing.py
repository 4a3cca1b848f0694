"""Prompts that say nothing of an attribute are scored without it.

A text tower that has met "cup" mostly in some colors says a little about colors when it is asked for a cup, and a cup
in another color scores lower. The directions of the embedding space in which only the attribute changes (from "a red
cup" to "a blue cup") are therefore projected out of prompts that do not name it, as biased prompts are used to debias a
vision-language model by Chuang et al. (arXiv 2302.00070). They can come from texts or from images, which share the
space. "Red cup" keeps its color.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.towers.tokenizer import split_words

__all__ = ["PromptDebiasing", "attribute_axes"]


@dataclass(frozen=True, eq=False)
class PromptDebiasing:
    """Removes an attribute from the embeddings of prompts that do not name it.

    Attributes:
        words: lower-case words that name the attribute's values; a prompt with one of them stays as it is.
        axes: float32 ``[A, E]``, orthonormal rows, where the embeddings are.
        text_set: name of the text set of the method's prompt embeddings that it acts on.
    """

    words: frozenset[str]
    axes: Tensor
    text_set: str = "text"

    def __call__(self, prompts: Sequence[str], embeddings: Tensor) -> Tensor:
        """Take the attribute out.

        Args:
            prompts: P texts, without templates.
            embeddings: float32 ``[P, E]``, L2-normalized.

        Returns:
            float32 ``[P, E]``, L2-normalized.

        Example:
            >>> debias = PromptDebiasing(frozenset({"red", "blue"}), torch.tensor([[1.0, 0.0]]))
            >>> debias(["cup", "red cup"], torch.tensor([[0.6, 0.8], [0.8, 0.6]])).tolist()
            [[0.0, 1.0], [0.800000011920929, 0.6000000238418579]]
        """
        silent = [self.words.isdisjoint(split_words(prompt)) for prompt in prompts]
        chosen = torch.tensor(silent, dtype=torch.bool, device=embeddings.device)[:, None]
        neutral = F.normalize(embeddings - embeddings @ self.axes.T @ self.axes, dim=-1)
        return torch.where(chosen, neutral, embeddings)

    @classmethod
    def from_file(cls, words: Sequence[str], axes: Tensor, embed_dim: int, text_set: str = "text") -> PromptDebiasing:
        """From what a model file holds.

        Args:
            words: see ``words`` above.
            axes: float ``[A, E]``, orthonormal but for the rounding of half precision.
            embed_dim: E of the model's text tower.
            text_set: see ``text_set`` above.

        Raises:
            WeightsError: the axes have another size, are more than the space has, or depend on each other.
        """
        if axes.dim() != 2 or axes.shape[1] != embed_dim or not 0 < len(axes) < embed_dim:
            raise WeightsError(
                f"debiasing: axes must be [A, {embed_dim}] with A from 1 to {embed_dim - 1}, not {list(axes.shape)}"
            )
        axes = axes.float()
        if not torch.allclose(axes @ axes.T, torch.eye(len(axes), device=axes.device), atol=1e-2):
            raise WeightsError("debiasing: axes must be orthonormal rows, but are not")
        return cls(frozenset(words), torch.linalg.qr(axes.T).Q.T.contiguous(), text_set)


def attribute_axes(embeddings: Mapping[str, Mapping[str, Tensor]], plain: Mapping[str, Tensor], count: int) -> Tensor:
    """The directions in which the values of an attribute differ most, whatever thing has them.

    Args:
        embeddings: for each value ("red"), for each thing that has it ("cup"), the float ``[E]`` of both ("a red cup"),
            from texts or from images.
        plain: for each thing, the float ``[E]`` that says no value: of its name alone, or the mean over its values.
        count: number of directions A, fewer than there are values.

    Returns:
        float32 ``[A, E]``, orthonormal rows, the strongest first.

    Raises:
        ValueError: the values do not differ in as many directions.

    Example:
        >>> cup, red, blue = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
        >>> attribute_axes({"red": {"cup": red}, "blue": {"cup": blue}}, {"cup": cup}, 1).abs().tolist()
        [[1.0, 0.0, 0.0]]
    """
    changes = torch.stack(
        [
            torch.stack([tensor - plain[thing] for thing, tensor in things.items()]).mean(dim=0)
            for things in embeddings.values()
        ]
    ).double()
    _, spread, axes = torch.linalg.svd(changes - changes.mean(dim=0), full_matrices=False)
    differing = int((spread > 1e-6 * spread.max()).sum())
    if not 0 < count <= differing:
        raise ValueError(
            f"count must be from 1 to {differing}, the number of directions in which the values differ, not {count}"
        )
    return torch.Tensor(axes[:count].float())
