"""Texts that begin alike, as one tree: a causal text tower computes each shared beginning once.

No token of a causal transformer sees a later one, so what it makes of "a photo of a" is the same in "a photo of a cat"
and in "a photo of a dog". The texts are therefore laid out as the nodes of a tree, in one sequence in which each node
attends to its ancestors and to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["PrefixTree", "prefix_tree"]


@dataclass(frozen=True)
class PrefixTree:
    """Texts that share their beginnings.

    Attributes:
        tokens: of the nodes, parents before their children.
        parents: the node before each, -1 for none.
        depths: place of each node in its texts, from 0.
        ends: the last node of each text.
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    ends: list[int]

    def __len__(self) -> int:
        return len(self.tokens)

    def attention_mask(self) -> Tensor:
        """float32 ``[N, N]`` to add to attention scores: 0 for a node's ancestors and itself, else minus infinity."""
        seen = np.zeros((len(self), len(self)), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf)))


def prefix_tree(texts: Sequence[Sequence[int]], most: int) -> PrefixTree | None:
    """Put texts into a tree.

    Args:
        texts: token ids, at least one each.
        most: number of nodes that are not too many.

    Returns:
        The tree, or ``None`` if it would have more nodes.

    Example:
        >>> tree = prefix_tree([[7, 1, 9], [7, 2, 9], [7, 1, 9]], most=5)
        >>> tree.tokens, tree.parents, tree.depths, tree.ends
        ([7, 1, 9, 2, 9], [-1, 0, 1, 0, 3], [0, 1, 2, 1, 2], [2, 4, 2])
    """
    tree = PrefixTree([], [], [], [])
    known: dict[tuple[int, int], int] = {}
    for text in texts:
        node = -1
        for depth, token in enumerate(text):
            parent, node = node, known.setdefault((node, token), len(known))
            if node == len(tree):
                tree.tokens.append(token)
                tree.parents.append(parent)
                tree.depths.append(depth)
        if len(tree) > most:
            return None
        tree.ends.append(node)
    return tree
