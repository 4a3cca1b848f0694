"""Texts that begin alike are computed once, and come out as they do one by one."""

from __future__ import annotations

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tcl_core.towers.clip_text as clip_module
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.text_prefixes import prefix_tree, prefix_trees
from tests.tiny_model import CLIP_CONFIG, TEXT_CONFIG

TEXTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=8)


@given(TEXTS)
def test_the_way_to_an_end_is_its_text_and_each_beginning_is_there_once(texts: list[list[int]]) -> None:
    beginnings = {tuple(text[: place + 1]) for text in texts for place in range(len(text))}
    assert prefix_tree(texts, len(beginnings) - 1) is None
    tree = prefix_tree(texts, len(beginnings))
    assert tree is not None and len(tree) == len(beginnings)
    mask = tree.attention_mask()
    for text, end in zip(texts, tree.ends, strict=True):
        seen = (mask[end] == 0).nonzero().flatten().tolist()
        assert [tree.tokens[node] for node in seen] == text
        assert [tree.depths[node] for node in seen] == list(range(len(text)))


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FrozenClip(open_clip.CLIP(**CLIP_CONFIG, text_cfg={**TEXT_CONFIG, "vocab_size": 20}).eval())


def token_rows(count: int, shared: int) -> torch.Tensor:
    """Ids of texts with ``shared`` tokens at their beginning; 19 ends them."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(count, TEXT_CONFIG["context_length"], dtype=torch.long)
    rows[:, :shared] = torch.randint(1, 18, (shared,), generator=generator)
    for row, own in zip(rows, torch.randint(1, 4, (count,), generator=generator).tolist(), strict=True):
        row[shared : shared + own] = torch.randint(1, 18, (own,), generator=generator)
        row[shared + own] = 19
    return rows


@pytest.mark.parametrize(("count", "shared", "shares"), [(9, 4, True), (40, 2, True), (6, 0, False), (1, 3, False)])
def test_embeddings_are_those_of_open_clip(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch, count: int, shared: int, shares: bool
) -> None:
    rows = token_rows(count, shared)
    expected = clip.model.encode_text(rows)
    trees: list[tuple[int, ...]] = []
    monkeypatch.setattr(clip_module, "text_blocks", _recorded(clip_module.text_blocks, trees))
    torch.testing.assert_close(clip.encode_text(rows), expected, rtol=1e-4, atol=1e-5)
    assert (trees[0][0] == 1 and count > 1) == shares
    trees.clear()
    monkeypatch.setattr(clip_module, "_MOST_NODES", {"cpu": 3})
    torch.testing.assert_close(clip.encode_text(rows), expected, rtol=1e-4, atol=1e-5)
    assert trees[0][0] == count
    trees.clear()
    monkeypatch.setattr(clip_module, "_MOST_NODES", {"cpu": 2 * shared + 6})
    torch.testing.assert_close(clip.encode_text(rows), expected, rtol=1e-4, atol=1e-5)
    assert all(size[1] <= 2 * shared + 6 for size in trees) or trees[0][0] == count


@given(TEXTS, st.integers(1, 12))
def test_trees_of_a_bounded_size_hold_every_text_once(texts: list[list[int]], most: int) -> None:
    trees = prefix_trees(texts, most)
    assert sorted(place for _, places in trees for place in places) == list(range(len(texts)))
    for tree, places in trees:
        assert len(tree) <= most or len({tuple(texts[place]) for place in places}) == 1
        whole = prefix_tree([texts[place] for place in places], most=1000)
        assert whole == tree


def _recorded(forward, shapes):
    def recorder(model, x, *rest):
        shapes.append(tuple(x.shape))
        return forward(model, x, *rest)

    return recorder
