"""File names that are text and file names that are not.

A file system may hold names whose bytes are not valid UTF-8. Python keeps such bytes as lone surrogates, which JSON can
escape but strict readers refuse.
"""

from __future__ import annotations

__all__ = ["NOT_TEXT", "is_text", "printable"]

NOT_TEXT = "the file name is not valid UTF-8, so it cannot stand in a JSON file; rename the file"
"""Why such a name is refused."""


def is_text(name: str) -> bool:
    r"""Whether a name can be written as UTF-8.

    >>> is_text("\u00c4pfel.png"), is_text("z\udcff.png")
    (True, False)
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""The name with what is not text spelled out.

    >>> print(printable("z\udcff.png"))
    z\udcff.png
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
