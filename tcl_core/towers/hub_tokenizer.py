"""Tokenizers of the Hugging Face hub, from one file and without the library that usually fetches them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tcl_core.errors import WeightsError

__all__ = ["HubTokenizer"]

_PADDING = ("[PAD]", "<pad>")
_SEPARATORS = ("[SEP]", "</s>")


class HubTokenizer:
    """A tokenizer file (``tokenizer.json``) as open_clip's ``HFTokenizer`` uses it.

    Texts are cleaned, wrapped in the tokenizer's own special tokens, cut and padded.

    Args:
        path: the file.
        context_length: row length L.
        clean: open_clip's name of how texts are cleaned: ``"whitespace"``, ``"canonicalize"`` or ``"lower"``.
        strip_sep_token: put 0 in the place of the separator at the end, as CLIPA does.

    Raises:
        WeightsError: the package ``tokenizers`` is not installed, or the file is none of its kind.
    """

    def __init__(
        self, path: Path, context_length: int, clean: str = "whitespace", strip_sep_token: bool = False
    ) -> None:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise WeightsError(
                "this CLIP uses a Hugging Face tokenizer, which needs the package tokenizers; install it "
                "with 'pip install tcl-annotate[hub-tokenizers]'"
            ) from error
        from open_clip.tokenizer import get_clean_fn

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        # The library raises Exception itself.
        except Exception as error:
            raise WeightsError(
                f"{path}: is not a complete tokenizer file ({' '.join(str(error).split())[:200]})"
            ) from error
        self._clean = get_clean_fn(clean)
        self._context_length = int(context_length)
        self._separator = self._id(_SEPARATORS) if strip_sep_token else None
        padding = self._id(_PADDING)
        self._tokenizer.enable_truncation(max_length=self._context_length)
        self._tokenizer.enable_padding(length=self._context_length, pad_id=padding or 0)

    def _id(self, names: Sequence[str]) -> int | None:
        found = (self._tokenizer.token_to_id(name) for name in names)
        return next((number for number in found if number is not None), None)

    @property
    def context_length(self) -> int:
        """Length L of every row of token ids."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Number of different ids."""
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 ``[N, L]``."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings; a single string would be read letter by letter")
        rows = [row.ids for row in self._tokenizer.encode_batch([self._clean(text) for text in texts])]
        tokens = torch.tensor(rows, dtype=torch.int64).view(len(rows), self._context_length)
        return tokens if self._separator is None else tokens.masked_fill(tokens == self._separator, 0)

    def length(self, text: str) -> int:
        """Ids of a text with its special ones, before it is cut."""
        row = self._tokenizer.encode(self._clean(text))
        # What was cut off is in further pieces, which have special ids of their own.
        further = [zip(piece.attention_mask, piece.special_tokens_mask, strict=True) for piece in row.overflowing]
        return sum(row.attention_mask) + sum(seen and not special for pairs in further for seen, special in pairs)

    def unknown_words(self, text: str) -> list[str]:
        """Always empty: pieces of words spell every word."""
        return []

    def to_dict(self) -> dict[str, Any]:
        """Never used: models of such CLIPs are not written to model files.

        Raises:
            WeightsError: always.
        """
        raise WeightsError("a Hugging Face tokenizer cannot be stored in a model file")
