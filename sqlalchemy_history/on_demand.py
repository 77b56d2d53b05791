"""Public names whose modules are loaded when somebody asks for them (:pep:`562`).

A program that only writes history needs no upkeep, no undo, no revert and no timelines, and does
not pay for their import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_demand(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A ``__getattr__`` and a ``__dir__`` for ``package``.

    :param modules: the names that it has from each of its modules. A module must not have the name
        of something in it: once loaded, it would take the place of that.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def __getattr__(name: str) -> Any:  # noqa: N807 - it is one
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home}"), name)

    def __dir__() -> list[str]:  # noqa: N807 - it is one
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__
