"""Fixtures of the contract suite: every method, each by its own example."""

from __future__ import annotations

import pytest

from tcl_core.methods import Method, list_methods, method_class


@pytest.fixture(scope="module", params=list_methods())
def method(request: pytest.FixtureRequest) -> Method:
    """The example of a method; tests must not change it."""
    return method_class(request.param).example()
