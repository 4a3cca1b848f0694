"""Examples in the docstrings of modules that need neither napari nor Qt."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from napari_tcl import annotation, export, rendering, slices, words


@pytest.mark.parametrize("module", [annotation, export, rendering, slices, words], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
