"""Errors a user can cause and mend.

Every message is one sentence that names the file, the field and the remedy; the command line prints it
without a traceback and exits with a non-zero code.
"""

from __future__ import annotations

__all__ = ["CocoError", "ExportError", "ImageError", "SettingsError", "TclError", "VocabularyError", "WeightsError"]


class TclError(Exception):
    """Base class of every error whose message is meant for the user."""


class VocabularyError(TclError):
    """A label, prompt, threshold, color or template that cannot be used."""


class ImageError(TclError):
    """An image that cannot be read, or that is larger than the limit."""


class WeightsError(TclError):
    """A model file that is missing, damaged, of the wrong kind or of the wrong hash."""


class ExportError(TclError):
    """An output file, or the journal of a job, that cannot be read or written."""


class CocoError(ExportError):
    """A COCO file that cannot be read or written."""


class SettingsError(TclError):
    """An option whose value is out of range or does not fit the others."""
