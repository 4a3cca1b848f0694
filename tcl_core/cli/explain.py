"""``--explain``: which background names compete with the labels, which are left out and why, and what they won."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tcl_core.segmentation.background_names import LeftOut, NameChoice
    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.types import Unlabeled
    from tcl_core.vocabulary import Vocabulary

__all__ = ["choose_names", "explain_names", "explain_option", "explain_shares"]

F = TypeVar("F", bound=Callable[..., Any])

_SHOWN = 5

explain_option = click.option(
    "--explain",
    is_flag=True,
    help="Print which background names compete with the labels, and which are left out and why.",
)
"""``--explain``."""


def choose_names(segmenter: Segmenter, vocabulary: Vocabulary, quiet: bool = False) -> NameChoice:
    """Embed a vocabulary and its background names, with a progress bar if they are new to the model.

    Returns:
        The background names.

    Raises:
        VocabularyError: the model does not know a word of a prompt or name.
    """
    if quiet or not sys.stderr.isatty():
        return segmenter.embed_vocabulary(vocabulary)

    from tqdm import tqdm

    with tqdm(unit="name", desc="embedding background names (once per model)", leave=False, delay=1) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return segmenter.embed_vocabulary(vocabulary, advance)


def explain_names(choice: NameChoice) -> str:
    """Which names compete, and for each that does not, the reason.

    Example:
        >>> from tcl_core.segmentation.background_names import LeftOut, NameChoice
        >>> left_out = (LeftOut("sofa", "near", "couch", 0.99), LeftOut("zebra", "unknown"))
        >>> print(explain_names(NameChoice("model", (("cat", "sky"),), left_out)))
        background names: 2 compete with the labels (from the model's own vocabulary): cat, sky
          left out: sofa (too similar to 'couch': 0.99, limit 0.85)
          left out: 1 with words unknown to the model: zebra
    """
    if choice.source == "none":
        return "background names: none compete with the labels"
    lines = [
        f"background names: {len(choice.names)} compete with the labels (from {_origin(choice)}): " + _listed(choice)
    ]
    lines += [f"  left out: {out.name} ({_reason(out)})" for out in choice.left_out if out.reason != "unknown"]
    unknown = [out.name for out in choice.left_out if out.reason == "unknown"]
    if unknown:
        more = ", ..." if len(unknown) > _SHOWN else ""
        lines.append(f"  left out: {len(unknown)} with words unknown to the model: {', '.join(unknown[:_SHOWN])}{more}")
    return "\n".join(lines)


def explain_shares(unlabeled: Unlabeled) -> str:
    """What the names won of an image.

    Example:
        >>> import numpy as np
        >>> from tcl_core.types import Unlabeled
        >>> print(explain_shares(Unlabeled(("sky", "wall"), np.array([[0, 1], [2, 2]], np.int32))))
        won by background names: wall 50.0%, sky 25.0%
    """
    shares = unlabeled.shares()
    return "won by background names: " + (
        ", ".join(f"{name} {share:.1%}" for name, share in shares.items()) or "nothing"
    )


def _listed(choice: NameChoice) -> str:
    names = choice.names
    return ", ".join(names[: 2 * _SHOWN]) + (", ..." if len(names) > 2 * _SHOWN else "")


def _origin(choice: NameChoice) -> str:
    from tcl_core.vocabulary.common_names import common_names, common_names_version

    if choice.source == "common":
        return f"the {len(common_names())} common names (version {common_names_version()})"
    return {"vocabulary": "your list", "model": "the model's own vocabulary", "method": "the method's list"}[
        choice.source
    ]


def _reason(out: LeftOut) -> str:
    from tcl_core.segmentation.background_names import NEAR

    if out.reason == "same":
        return f"same words as {out.text!r}"
    if out.reason == "related":
        return f"related to {out.text!r}"
    return f"too similar to {out.text!r}: {out.nearness:.2f}, limit {NEAR}"
