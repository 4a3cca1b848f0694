"""Prompts in their templates."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["texts_in_templates"]


def texts_in_templates(prompts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every prompt in every template, prompt by prompt.

    Args:
        prompts: P texts, which may hold braces of their own.
        templates: T texts, each with one ``{}`` for the prompt.

    Returns:
        P x T texts.

    Example:
        >>> texts_in_templates(["cat", "red {sofa}"], ["a {}.", "{}"])
        ['a cat.', 'cat', 'a red {sofa}.', 'red {sofa}']
    """
    # Not str.format, which would read the prompt's braces.
    return [template.replace("{}", prompt) for prompt in prompts for template in templates]
