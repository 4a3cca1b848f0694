"""Fixtures of the contract suite: every method, each by its own example."""

from __future__ import annotations

import pytest

from tcl_core.methods import Method, list_methods
from tests.contract.examples import example_of


@pytest.fixture(scope="module", params=list_methods())
def method(request: pytest.FixtureRequest) -> Method:
    """The example of a method; tests must not change it."""
    return example_of(request.param)
