"""Fixtures of the contract suite: every method, each by its own example."""

from __future__ import annotations

import importlib.util

import pytest

from tcl_core.methods import Method, list_methods, method_class
from tests.missing import missing

NEEDED = {"groupvit": "transformers"}
"""Packages that the examples of some methods need."""


@pytest.fixture(scope="module", params=list_methods())
def method(request: pytest.FixtureRequest) -> Method:
    """The example of a method; tests must not change it."""
    if request.param in NEEDED and importlib.util.find_spec(NEEDED[request.param]) is None:
        missing(f"the example of {request.param} needs {NEEDED[request.param]} (pip install tcl-annotate[test])")
    return method_class(request.param).example()
