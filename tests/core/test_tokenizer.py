from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl_core.errors import WeightsError
from tcl_core.towers.tokenizer import (
    NoTokenizer,
    OpenClipTokenizer,
    Tokenizer,
    WordTokenizer,
    split_words,
    tokenizer_from_dict,
)

WORDS = ["a", "photo", "of", "red", "sofa", "dog's"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Photo, of: RED-sofa!", ["a", "photo", "of", "red", "sofa"]),
        ("the dog's 'quoted' bed", ["the", "dog's", "quoted", "bed"]),
        ("dog\u2019s", ["dog's"]),
        ("snake_case 3d", ["snake", "case", "3d"]),
        ("", []),
        (" \n\t", []),
        ("café кошка", ["café", "кошка"]),
        ("ＲＥＤ", ["red"]),
    ],
)
def test_split_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_ids_follow_the_layout() -> None:
    tokens = WordTokenizer(WORDS, 8)(["a red zebra", "", "sofa"])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[8, 2, 5, 1, 9, 0, 0, 0], [8, 9, 0, 0, 0, 0, 0, 0], [8, 6, 9, 0, 0, 0, 0, 0]]


def test_long_text_keeps_eot_last() -> None:
    tokens = WordTokenizer(WORDS, 4)(["a photo of red sofa"])
    assert tokens.tolist() == [[8, 2, 3, 9]]
    assert WordTokenizer(WORDS, 4)(["a photo"]).tolist() == [[8, 2, 3, 9]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=4), st.integers(3, 9))
def test_rows_are_start_words_end_padding(texts: list[str], length: int) -> None:
    tokenizer = WordTokenizer(WORDS, length)
    tokens = tokenizer(texts)
    assert tokens.shape == (len(texts), length)
    for row in tokens.tolist():
        end = row.index(tokenizer.vocab_size - 1)
        assert row[0] == tokenizer.vocab_size - 2
        assert all(1 <= token < tokenizer.vocab_size - 2 for token in row[1:end])
        assert not any(row[end + 1 :])


def test_unknown_words_in_order_and_once() -> None:
    tokenizer = WordTokenizer(WORDS, 8)
    assert tokenizer.unknown_words("a blue zebra, a Blue sofa") == ["blue", "zebra"]
    assert tokenizer.unknown_words("a red sofa") == []
    assert tokenizer.unknown_words("диван") == ["диван"]
    assert tokenizer.unknown_words("🛋") == ["🛋"]
    assert tokenizer.unknown_words("") == []


def test_open_clip_equals_the_library() -> None:
    texts = ["a photo of a red sofa", "naïve café", "x " * 200, ""]
    assert torch.equal(OpenClipTokenizer()(texts), open_clip.tokenize(texts))
    short = OpenClipTokenizer(context_length=8)(texts)
    assert short.shape == (4, 8)
    assert short[2, -1] == 49407 and short[2, 0] == 49406
    assert OpenClipTokenizer(8)([]).shape == (0, 8)
    assert OpenClipTokenizer().unknown_words("zzyzx") == []


@pytest.mark.parametrize("kind", [lambda length: WordTokenizer(WORDS, length), OpenClipTokenizer])
@pytest.mark.parametrize("text", ["", "a red sofa", "naïve café's", "red " * 90])
def test_length_is_that_of_the_text_before_it_is_cut(kind: Callable[[int], Tokenizer], text: str) -> None:
    # Padding is 0, which no text of these has as an id.
    assert kind(5).length(text) == int((kind(300)([text]) != 0).sum())


@pytest.mark.parametrize("tokenizer", [WordTokenizer(WORDS, 6), OpenClipTokenizer(9), NoTokenizer(8, 50)])
def test_round_trip(tokenizer: Tokenizer) -> None:
    again = tokenizer_from_dict(tokenizer.to_dict())
    assert isinstance(again, Tokenizer) and type(again) is type(tokenizer)
    assert again.to_dict() == tokenizer.to_dict()
    assert (again.context_length, again.vocab_size) == (tokenizer.context_length, tokenizer.vocab_size)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "type must be"),
        ({"type": "bpe"}, "'bpe'"),
        ({"type": "words", "words": "red", "context_length": 8}, "list of words"),
        ({"type": "words", "words": ["red", "red"], "context_length": 8}, "twice"),
        ({"type": "words", "words": ["Red"], "context_length": 8}, "'Red'"),
        ({"type": "words", "words": ["red sofa"], "context_length": 8}, "'red sofa'"),
        ({"type": "words", "words": [3], "context_length": 8}, "3"),
        ({"type": "words", "words": ["red"], "context_length": 2}, "at least 3"),
        ({"type": "words", "words": ["red"]}, "context_length"),
        ({"type": "open_clip", "context_length": True}, "context_length"),
        ({"type": "none", "context_length": 8}, "vocab_size"),
    ],
)
def test_bad_entries(entry: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        tokenizer_from_dict(entry)


def test_a_bare_string_is_refused() -> None:
    for tokenizer in (WordTokenizer(WORDS, 6), OpenClipTokenizer()):
        with pytest.raises(TypeError, match="list of strings"):
            tokenizer("red")
    with pytest.raises(WeightsError, match="one string"):
        WordTokenizer("red", 6)


def test_missing_tokenizer_says_so() -> None:
    with pytest.raises(WeightsError, match="no tokenizer"):
        NoTokenizer(8, 50)(["red"])
