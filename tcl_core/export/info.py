"""What an output says about how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tcl_core
from tcl_core.errors import ExportError
from tcl_core.vocabulary import Vocabulary

__all__ = ["run_info"]


def run_info(vocabulary: Vocabulary, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Program, settings and vocabulary of a run, as plain JSON values.

    Args:
        vocabulary: the labels.
        settings: everything else the results depend on, fit for JSON.

    Raises:
        ExportError: the settings cannot be written as JSON.
    """
    info = {
        "description": "Pre-labels made by tcl-annotate from text prompts",
        "version": tcl_core.__version__,
        "settings": dict(settings),
        "vocabulary": vocabulary.to_dict(),
        "vocabulary_fingerprint": vocabulary.fingerprint(),
    }
    try:
        # Tuples become lists, as they will be when the file is read back to be compared.
        return json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"the settings cannot be written as JSON: {error}") from error
