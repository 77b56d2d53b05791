"""Every example in a docstring of the package runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import sqlalchemy_history

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(sqlalchemy_history.__path__, "sqlalchemy_history.")
    # Optional frameworks may be missing; their tests are where the framework is.
    if not module.name.startswith("sqlalchemy_history.ext.")
)


@pytest.mark.parametrize("name", ["sqlalchemy_history", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    """The examples of one module run."""
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0
