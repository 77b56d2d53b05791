"""Listeners that can all be taken away again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import event


class Listeners:
    """What was listened to, held weakly, and by whom."""

    def __init__(self) -> None:
        self._added: weakref.WeakKeyDictionary[Any, list[tuple[str, Callable[..., Any]]]] = (
            weakref.WeakKeyDictionary()
        )

    def __contains__(self, target: object) -> bool:
        return target in self._added

    def __bool__(self) -> bool:
        return bool(self._added)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._added))

    def add(self, target: Any, listeners: Mapping[str, Callable[..., Any]], **kw: Any) -> None:
        """Listen to the events that ``listeners`` names; ``kw`` as for ``event.listen()``."""
        added = self._added.setdefault(target, [])
        for name, listener in listeners.items():
            event.listen(target, name, listener, **kw)
            added.append((name, listener))

    def clear(self) -> None:
        """Listen to nothing any more."""
        for target, added in list(self._added.items()):
            for name, listener in added:
                if event.contains(target, name, listener):
                    event.remove(target, name, listener)
        self._added.clear()
