"""From prompts to token ids: CLIP's byte pairs, or the closed word list of a small model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tcl_core.errors import WeightsError

__all__ = ["NoTokenizer", "OpenClipTokenizer", "Tokenizer", "WordTokenizer", "split_words", "tokenizer_from_dict"]

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_PLAIN_WORD = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)*")


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the library needs from a tokenizer."""

    @property
    def context_length(self) -> int:
        """Length L of every row of token ids."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of different ids; every id is in ``[0, vocab_size)`` and EOT is the largest."""
        ...

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 ``[N, L]`` of N texts."""
        ...

    def length(self, text: str) -> int:
        """Ids of a text, those of its start and end included, before it is cut to ``context_length``."""
        ...

    def unknown_words(self, text: str) -> list[str]:
        """The words of ``text`` that the model never learned, in order, each once."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The ``tokenizer`` entry of a model file; :func:`tokenizer_from_dict` reads it back."""
        ...


def split_words(text: str) -> list[str]:
    """Lower-case words of a text; everything but letters, digits and inner apostrophes separates.

    Letters of every script count as letters: a word outside ``[a-z0-9']`` is one (unknown) word, so that a prompt
    in another script is seen as unknown and not as empty.

    >>> split_words("A dog's bed, RED-striped!")
    ['a', "dog's", 'bed', 'red', 'striped']
    >>> split_words("café")
    ['café']
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    # Lower-casing can decompose letters (U+0130); composing again keeps one word one word.
    return _WORD.findall(unicodedata.normalize("NFKC", text))


class WordTokenizer:
    """One id per word of a closed list.

    Ids: 0 padding, 1 unknown word, 2.. the words in order, then start of text (``V - 2``) and end of text
    (``V - 1``) with ``V = len(words) + 4``. EOT has the largest id, because CLIP's text tower pools at the arg-max.

    >>> tokenizer = WordTokenizer(["red", "sofa"], context_length=6)
    >>> tokenizer(["Red sofa.", "blue"]).tolist()
    [[4, 2, 3, 5, 0, 0], [4, 1, 5, 0, 0, 0]]
    >>> tokenizer.unknown_words("a red sofa")
    ['a']
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        """Build the word table.

        Args:
            words: different words, each of ``[a-z0-9]`` with inner apostrophes.
            context_length: L, at least 3.

        Raises:
            WeightsError: a word is repeated or is not a plain lower-case word, or ``context_length`` is under 3.
        """
        if context_length < 3:
            raise WeightsError(
                f"tokenizer: context_length must be at least 3 (start, a word, end), not {context_length}"
            )
        if isinstance(words, str):
            raise WeightsError("tokenizer: words must be a list of words, not one string")
        self._words = tuple(words)
        self._context_length = int(context_length)
        self._ids: dict[str, int] = {}
        for index, word in enumerate(self._words):
            if not isinstance(word, str) or not _PLAIN_WORD.fullmatch(word):
                raise WeightsError(
                    f"tokenizer: {word!r} is not a lower-case word of letters a-z, digits and apostrophes"
                )
            if word in self._ids:
                raise WeightsError(f"tokenizer: the word {word!r} is listed twice")
            self._ids[word] = index + 2

    @property
    def words(self) -> tuple[str, ...]:
        """The known words in the order of their ids."""
        return self._words

    @property
    def context_length(self) -> int:
        """Length L of every row of token ids."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """``len(words) + 4``."""
        return len(self._words) + 4

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 ``[N, L]``; a text that is too long is cut and still ends in EOT."""
        _refuse_bare_string(texts)
        tokens = torch.zeros(len(texts), self._context_length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self._ids.get(word, 1) for word in split_words(text)][: self._context_length - 2]
            ids = [self.vocab_size - 2, *ids, self.vocab_size - 1]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def length(self, text: str) -> int:
        """Ids of a text with its start and end, before it is cut."""
        return len(split_words(text)) + 2

    def unknown_words(self, text: str) -> list[str]:
        """Words of ``text`` outside the list, in order, each once; a text of signs alone is one unknown word."""
        words = split_words(text)
        if not words and text.strip():
            return [text.strip()]
        return list(dict.fromkeys(word for word in words if word not in self._ids))

    def to_dict(self) -> dict[str, Any]:
        """``{"type": "words", "words": [...], "context_length": L}``."""
        return {"type": "words", "words": list(self._words), "context_length": self._context_length}


class OpenClipTokenizer:
    """CLIP's lower-cased byte-pair tokenizer (49,408 ids); longer texts are cut and still end in EOT.

    >>> OpenClipTokenizer(context_length=5)(["a photo of a red sofa"]).tolist()
    [[49406, 320, 1125, 539, 49407]]
    """

    def __init__(self, context_length: int = 77) -> None:
        """Set the row length L (77 for every OpenAI model)."""
        # open_clip takes seconds to import, which the commands that need no network should not pay.
        from open_clip import SimpleTokenizer

        if context_length < 3:
            raise WeightsError(
                f"tokenizer: context_length must be at least 3 (start, a word, end), not {context_length}"
            )
        self._tokenizer = SimpleTokenizer(context_length=context_length)
        self._context_length = int(context_length)

    @property
    def context_length(self) -> int:
        """Length L of every row of token ids."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """49,408."""
        return int(self._tokenizer.vocab_size)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 ``[N, L]``."""
        _refuse_bare_string(texts)
        if not texts:
            return torch.zeros(0, self._context_length, dtype=torch.int64)
        return self._tokenizer(list(texts))

    def length(self, text: str) -> int:
        """Ids of a text with its start and end, before it is cut."""
        return len(self._tokenizer.encode(text)) + 2

    def unknown_words(self, text: str) -> list[str]:
        """Always empty: byte pairs spell every word."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """``{"type": "open_clip", "context_length": L}``."""
        return {"type": "open_clip", "context_length": self._context_length}


class NoTokenizer:
    """Stands in where a checkpoint came without its tokenizer: token ids work, texts are a clear error."""

    def __init__(self, context_length: int, vocab_size: int) -> None:
        """Keep the sizes of the text tower that the ids must fit."""
        self._context_length = int(context_length)
        self._vocab_size = int(vocab_size)

    @property
    def context_length(self) -> int:
        """Length L of every row of token ids."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Number of rows of the token embedding."""
        return self._vocab_size

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Never succeeds.

        Raises:
            WeightsError: always.
        """
        raise WeightsError(
            f"the model file has no tokenizer (its text tower has {self._vocab_size} tokens, which is not CLIP's "
            "vocabulary), so it cannot encode texts; import it again with its tokenizer"
        )

    def length(self, text: str) -> int:
        """Always 0, so that the message about the missing tokenizer is the one that is seen."""
        return 0

    def unknown_words(self, text: str) -> list[str]:
        """Always empty, so that the message about the missing tokenizer is the one that is seen."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """``{"type": "none", "context_length": L, "vocab_size": V}``."""
        return {"type": "none", "context_length": self._context_length, "vocab_size": self._vocab_size}


def tokenizer_from_dict(entry: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a model file's ``tokenizer`` entry describes.

    Args:
        entry: ``{"type": "open_clip"}`` (``context_length`` 77 if absent), ``{"type": "words", "words": [...],
            "context_length": L}`` or ``{"type": "none", "context_length": L, "vocab_size": V}``.

    Raises:
        WeightsError: the type is unknown, or a value is missing or of the wrong kind.
    """
    kind = entry.get("type")
    if kind == "open_clip":
        return OpenClipTokenizer(_whole_number(entry, "context_length", default=77))
    if kind == "words":
        words = entry.get("words")
        if not isinstance(words, list):
            raise WeightsError("tokenizer: 'words' must be a list of words")
        return WordTokenizer(words, _whole_number(entry, "context_length"))
    if kind == "none":
        return NoTokenizer(_whole_number(entry, "context_length"), _whole_number(entry, "vocab_size"))
    raise WeightsError(f"tokenizer: type must be 'open_clip', 'words' or 'none', not {kind!r}")


def _whole_number(entry: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightsError(f"tokenizer: {key!r} must be a whole number of at least 1, not {value!r}")
    return value


def _refuse_bare_string(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError("texts must be a list of strings; a single string would be read letter by letter")
