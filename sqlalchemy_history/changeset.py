"""What differs between two states of one object: pure functions over their values.

>>> changeset_of({"name": "a", "size": 1}, {"name": "b", "size": 1})
{'name': ['a', 'b']}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: attribute name -> [old value, new value]
Changeset = dict[str, list[Any]]


def changeset_of(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Changeset:
    """What ``new`` changed of ``old``; with no ``old`` all that is not None is a change."""
    before = old or {}
    return {
        name: [known, value] for name, value in new.items() if (known := before.get(name)) != value
    }
