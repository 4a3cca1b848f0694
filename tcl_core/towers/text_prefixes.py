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

__all__ = ["PrefixTree", "prefix_tree", "prefix_trees"]


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


def prefix_trees(texts: Sequence[Sequence[int]], most: int) -> list[tuple[PrefixTree, list[int]]]:
    """Put texts into trees of a bounded size, neighbors in the order of their tokens together.

    Attention grows with the square of a tree's nodes, and texts that begin alike are neighbors, so that several small
    trees cost less than a large one.

    Args:
        texts: token ids, at least one each.
        most: nodes of a tree, unless it holds a single text.

    Returns:
        The trees, and the places in ``texts`` of the texts of each.

    Example:
        >>> trees = prefix_trees([[7, 1, 9], [8, 2], [7, 3, 9]], most=5)
        >>> [(len(tree), places) for tree, places in trees]
        [(5, [0, 2]), (2, [1])]
    """
    groups: list[list[int]] = []
    nodes = most + 1
    before: Sequence[int] = ()
    for place in sorted(range(len(texts)), key=lambda place: tuple(texts[place])):
        text = texts[place]
        # In this order the longest beginning that was there already is that of the text before.
        shared = next((depth for depth, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), None)
        shared = min(len(before), len(text)) if shared is None else shared
        nodes += len(text) - shared
        if nodes > most:
            groups.append([])
            nodes = len(text)
        groups[-1].append(place)
        before = text
    found = []
    for group in groups:
        tree = prefix_tree([texts[place] for place in group], most=sum(len(texts[place]) for place in group))
        assert tree is not None
        found.append((tree, group))
    return found
