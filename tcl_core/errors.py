"""Errors that a user can cause and fix.

Every message is one sentence that names the file, the field and the remedy; the command line prints it
without a traceback and exits with a non-zero code.
"""

from __future__ import annotations

import errno

__all__ = [
    "CocoError",
    "DataSetError",
    "ExportError",
    "ImageError",
    "SettingsError",
    "TclError",
    "VocabularyError",
    "WeightsError",
    "is_full",
    "is_out_of_memory",
    "reason_of",
    "remedy_of",
]


class TclError(Exception):
    """Base class of every error whose message is meant for the user."""


class VocabularyError(TclError):
    """A label, prompt, threshold, color or template that cannot be used."""


class ImageError(TclError):
    """An image that cannot be read, or that is larger than the limit."""


class WeightsError(TclError):
    """A model file that is missing, damaged or of the wrong kind, or whose hash does not match."""


class ExportError(TclError):
    """An output file, or the journal of a job, that cannot be read or written."""


class CocoError(ExportError):
    """A COCO file that cannot be read or written."""


class DataSetError(TclError):
    """A data set for evaluation with a missing or invalid file."""


class SettingsError(TclError):
    """An option whose value is out of range or conflicts with other options."""


def is_full(error: OSError) -> bool:
    """Whether a disk, a quota or a limit on the size of files has no room left.

    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError(errno.EACCES, "Permission denied"))
    (True, False)
    """
    return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether main memory, or that of a GPU, does not suffice.

    PyTorch has an error of its own for that, and tells it in words alone where a library that it calls ran out.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    (True, True)
    >>> is_out_of_memory(RuntimeError("shapes differ"))
    False
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    signs = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "not enough memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def reason_of(error: OSError) -> str:
    """What the operating system says, without number and path.

    >>> reason_of(OSError(errno.EACCES, "Permission denied", "/x")), reason_of(OSError("encoder error"))
    ('Permission denied', 'encoder error')
    """
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def remedy_of(error: OSError) -> str:
    """How to go on after a file could not be written.

    >>> remedy_of(OSError(errno.ENOSPC, "No space left on device"))
    'free some space on that disk'
    """
    return "free some space on that disk" if is_full(error) else "choose another folder or file name"
