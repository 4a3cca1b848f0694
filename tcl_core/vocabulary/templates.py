"""Prompt templates: the sentences a prompt is put into before it goes to the text tower.

A template holds one ``{}`` where the prompt goes. All templates of a set are encoded and their **un-normalized**
embeddings averaged, then the mean is L2-normalized (Cha et al., CVPR 2023; CLIP itself normalizes each first).
"""

from __future__ import annotations

import difflib

from tcl_core.errors import VocabularyError

__all__ = ["TEMPLATE_SETS", "apply_templates", "check_template_set", "get_templates"]

_SUBSET = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

_SETS: dict[str, tuple[str, ...]] = {
    "custom": (*_SUBSET, "a photo of many {}.", "a photo of {}s."),
    "simple": ("a photo of a {}.",),
    "subset": _SUBSET,
    "maskclip": (
        "there is a {} in the scene.",
        "there is the {} in the scene.",
        "this is a {} in the scene.",
        "this is the {} in the scene.",
        "this is one {} in the scene.",
    ),
    "plural": ("a photo of {}s.",),
    "identity": ("{}",),
}

TEMPLATE_SETS: tuple[str, ...] = (
    "custom",
    "simple",
    "subset",
    "full",
    "maskclip",
    "maskclip85",
    "plural",
    "identity",
)
"""Names of the template sets, TCL's default ("custom") first."""


def check_template_set(name: str) -> str:
    """Return ``name`` if it is a template set.

    Raises:
        VocabularyError: if there is no such set; the message lists those there are.
    """
    if name not in TEMPLATE_SETS:
        near = difflib.get_close_matches(str(name), TEMPLATE_SETS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise VocabularyError(
            f"templates: there is no template set {name!r}{hint}; choose one of {', '.join(TEMPLATE_SETS)}"
        )
    return name


def get_templates(name: str) -> tuple[str, ...]:
    """Templates of the set ``name``, each with one ``{}``.

    ``custom`` (9) is TCL's default; ``subset`` (7), ``simple`` (1), ``maskclip`` (5), ``plural`` (1) and ``identity``
    (1) are smaller; ``full`` (80) are CLIP's ImageNet templates, taken from open_clip, and
    ``maskclip85`` are both of these.

    Raises:
        VocabularyError: if there is no such set.

    Examples:
        >>> get_templates("simple")
        ('a photo of a {}.',)
        >>> len(get_templates("custom"))
        9
    """
    if check_template_set(name) == "maskclip85":
        return get_templates("full") + get_templates("maskclip")
    if name == "full":
        # Imported late: open_clip pulls in torch, and a label file must be checked without it.
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return _SETS[name]


def apply_templates(prompt: str, name: str) -> list[str]:
    """Put ``prompt`` into every template of the set ``name``.

    Raises:
        VocabularyError: if there is no such set.

    Examples:
        >>> apply_templates("sofa", "maskclip")[0]
        'there is a sofa in the scene.'
    """
    # Not str.format: a prompt may hold braces of its own.
    return [template.replace("{}", prompt) for template in get_templates(name)]
