"""What a test needs and does not find: a reason to skip on somebody's machine, a failure in continuous integration."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["missing"]


def missing(reason: str) -> NoReturn:
    """Skip the test; with ``CI=true`` fail it, because nobody reads the list of skipped tests there.

    Args:
        reason: what is missing and how it is had, as a sentence.
    """
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason} (with CI=true this is a failure; .ci/run installs what the tests need)", pytrace=False)
    pytest.skip(reason)
