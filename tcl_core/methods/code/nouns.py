"""The things that a caption names, and which of its tokens name them.

NLTK's tagger finds nouns, as in the authors' program. Where it is not wanted, a list of rules does with fewer
demands and more mistakes; which of them is used is a setting of the method, and never chosen silently.
"""

from __future__ import annotations

import importlib
import os
import shutil
import string
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.code.noun_rules import nouns_by_rules

__all__ = ["MOST_NAMED", "Tagger", "find_nouns", "missing_data", "noun_ids", "use_data", "word_labels"]

Tagger = Literal["nltk", "rules"]

MOST_NAMED = 16
"""Things of a caption that are remembered to tell negatives; rarely are there more."""

_NOUN_TAGS = {"NN", "NNS", "NNP", "NNPS"}
_NO_NOUNS = {*string.ascii_lowercase, "<", ">"}
# What NLTK raises where a file is cut off, is a page of a proxy, or is another version's.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, KeyError, IndexError)
# The manifest's names of downloads, and where NLTK looks for them.
_NLTK_DATA = {
    "nltk-sentences": "tokenizers/punkt_tab",
    "nltk-tagger": "taggers/averaged_perceptron_tagger_eng",
}


@lru_cache(maxsize=1 << 16)
def find_nouns(caption: str, tagger: Tagger) -> tuple[str, ...]:
    """The nouns of a caption, each once.

    Args:
        caption: any text.
        tagger: how they are found.

    Returns:
        As the caption spells them, sorted, so that what is drawn from them is the same in every process.

    Raises:
        SettingsError: NLTK or its data is not installed.

    Example:
        >>> find_nouns("a red cup next to the sofa", "rules")
        ('cup', 'sofa')
    """
    found = _nouns_by_nltk(caption) if tagger == "nltk" else nouns_by_rules(caption)
    return tuple(sorted(set(found) - _NO_NOUNS))


def _nouns_by_nltk(caption: str) -> list[str]:
    tokenize, tagger = _nltk()
    return [word for word, tag in tagger.tag(tokenize(caption)) if tag in _NOUN_TAGS]


@cache
def _nltk() -> tuple[Any, Any]:
    """NLTK's tokenizer and tagger; its own function reads the tagger's file at every call."""
    try:
        tokenize = importlib.import_module("nltk.tokenize").word_tokenize
        tagger = importlib.import_module("nltk.tag.perceptron").PerceptronTagger
    except ImportError:
        raise SettingsError(
            "CoDe finds the nouns of captions with NLTK, which is not installed; run 'pip install "
            '"tcl-annotate[nouns]"\', or find them by rules with the setting tagger: rules.'
        ) from None
    try:
        tokenize("a")
        return tokenize, tagger()
    except _DAMAGED as error:
        raise _damaged(error) from error
    except LookupError:
        raise SettingsError(
            "NLTK's data is not installed; run 'python -m nltk.downloader "
            f"{' '.join(place.rpartition('/')[2] for place in _NLTK_DATA.values())}', or find nouns by rules with the "
            "setting tagger: rules."
        ) from None


def _damaged(error: Exception) -> SettingsError:
    """NLTK reads what it finds first and does not say which file that was."""
    data = importlib.import_module("nltk.data")
    found = [
        str(path)
        for folder in data.path
        for place in _NLTK_DATA.values()
        for path in (Path(folder, place), Path(folder, f"{place}.zip"))
        if path.exists()
    ]
    return SettingsError(
        f"NLTK's data is damaged ({' '.join(str(error).split()) or type(error).__name__}); delete "
        f"{' and '.join(found) or 'it'} and run the command again, or find nouns by rules with the setting "
        "tagger: rules."
    )


def missing_data() -> tuple[str, ...]:
    """Names of the downloads that NLTK lacks; none where NLTK itself is missing.

    Raises:
        SettingsError: what it has cannot be read.
    """
    try:
        data = importlib.import_module("nltk.data")
    except ImportError:
        return ()
    found = []
    for name, place in _NLTK_DATA.items():
        try:
            data.find(place + "/")
        except _DAMAGED as error:
            raise _damaged(error) from error
        except LookupError:
            found.append(name)
    return tuple(found)


def use_data(files: Mapping[str, Path]) -> None:
    """Let NLTK find downloaded data, in this process and in those that it starts.

    Args:
        files: zip files by the names of `missing_data`; a folder as NLTK wants it is made beside them.
    """
    if not files:
        return
    data = importlib.import_module("nltk.data")
    for name, path in files.items():
        folder = path.parent / "nltk_data"
        target = folder / f"{_NLTK_DATA[name]}.zip"
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced at once, for several processes may do so.
        with tempfile.TemporaryDirectory(dir=folder) as place:
            os.replace(shutil.copy(path, place), target)
        if str(folder) not in data.path:
            data.path.append(str(folder))
            os.environ["NLTK_DATA"] = os.pathsep.join(filter(None, [os.environ.get("NLTK_DATA"), str(folder)]))
    _nltk.cache_clear()


def noun_ids(nouns: Sequence[str], length: int) -> Tensor:
    """Numbers that are equal where nouns are, int64 ``[length]``; -1 fills up, and what is too much is left out.

    Example:
        >>> ids = noun_ids(["cup", "Cup", "sofa"], 4)
        >>> bool(ids[0] == ids[1]), bool(ids[1] == ids[2]), int(ids[3])
        (True, False, -1)
    """
    found = [zlib.crc32(noun.lower().encode()) for noun in nouns[:length]]
    return torch.tensor(found + [-1] * (length - len(found)), dtype=torch.int64)


def word_labels(caption: Tensor, nouns: Tensor, chosen: Tensor) -> Tensor:
    """Which noun each token of a caption belongs to.

    Args:
        caption: token ids int64 ``[L]``, with start and end.
        nouns: of all nouns that the caption names, int64 ``[M, L]``, likewise.
        chosen: of the chosen ones, int64 ``[K, L]``.

    Returns:
        int64 ``[L]``: i at tokens of the i-th chosen noun, from 1; 0 at those of other nouns; -1 elsewhere.

    Example:
        >>> text = torch.tensor([8, 1, 2, 3, 2, 9, 0])
        >>> one, two = torch.tensor([[8, 2, 9, 0, 0, 0, 0]]), torch.tensor([[8, 3, 9, 0, 0, 0, 0]])
        >>> word_labels(text, torch.cat([one, two]), two).tolist()
        [-1, -1, 0, 1, 0, -1, -1]
    """
    labels = torch.full_like(caption, -1)
    text = caption.tolist()
    for rows, values in ((nouns, [0] * len(nouns)), (chosen, range(1, len(chosen) + 1))):
        for row, value in zip(rows, values, strict=True):
            word = row[1 : int(row.argmax())].tolist()
            for start in range(len(text) - len(word) + 1 if word else 0):
                if text[start : start + len(word)] == word:
                    labels[start : start + len(word)] = value
    return labels
