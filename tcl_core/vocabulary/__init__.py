"""Vocabularies: labels, their prompts, templates and colors."""

from __future__ import annotations

from tcl_core.vocabulary.colors import default_colors
from tcl_core.vocabulary.labels import Label
from tcl_core.vocabulary.vocabulary import Vocabulary

__all__ = ["Label", "Vocabulary", "default_colors"]
