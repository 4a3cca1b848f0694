"""Who competes for the pixels of an image: the labels of a vocabulary, and names that stand for everything else."""

from __future__ import annotations

from collections.abc import Sequence

from tcl_core.methods.base import Method
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.templates import apply_templates
from tcl_core.vocabulary.words import same_words

__all__ = ["Contenders", "owners"]


class Contenders:
    """The labels that compete under a method; its own names of the background are judged once for each template set.

    Args:
        method: with its towers, which know some words or all.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._known: dict[str, tuple[str, ...]] = {}

    def of(self, vocabulary: Vocabulary, templates: str) -> tuple[Label, ...]:
        """The labels of a vocabulary, then the background's names as one label more, where there are any.

        The method's own names are used where the vocabulary says none, but for those that the model does not know.
        Names that are a label's name or prompt too, also in the plural, take no part, whoever gave them.

        Args:
            vocabulary: the labels.
            templates: name of the template set that prompts are put into.
        """
        names = vocabulary.background_names if vocabulary.background else ()
        if names is None:
            names = self._own_names(templates)
        if names:
            taken = dict.fromkeys(text for label in vocabulary.labels for text in (label.name, *label.prompts))
            names = tuple(name for name in names if not any(same_words(name, text) for text in taken))
        return (*vocabulary.labels, Label("background", names)) if names else vocabulary.labels

    def _own_names(self, templates: str) -> tuple[str, ...]:
        """The method's names of the background whose words the model knows, also inside the templates."""
        if templates not in self._known:
            self._known[templates] = tuple(
                name
                for name in self._method.background.names
                if not any(map(self._method.unknown_words, (name, *apply_templates(name, templates))))
            )
        return self._known[templates]


def owners(labels: Sequence[Label], own: int) -> list[int]:
    """The label of each prompt, as `tcl_core.methods.Method.finish` takes it.

    Args:
        labels: some that compete, in their order.
        own: how many of them, from the first on, are the vocabulary's; the rest is the background's names.

    Returns:
        Numbers from 0, and -1 for names of the background.

    Example:
        >>> owners([Label("Seat", ("chair", "sofa")), Label("background", ("sky",))], own=1)
        [0, 0, -1]
    """
    return [place if place < own else -1 for place, label in enumerate(labels) for _ in label.prompts]
