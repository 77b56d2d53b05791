"""What the history must be, from what the live tables held.

Plain Python: knows neither SQLAlchemy nor the library that it judges. It is told what the tables
hold (:meth:`HistoryModel.observe`) and where transactions and savepoints begin and end, and it says
which versions there must be afterwards.

>>> model = HistoryModel([("article",)])
>>> model.observe({"article": {(1,): {"name": "a"}}})
>>> model.commit()
1
>>> model.observe({"article": {}})
>>> model.commit()
2
>>> for version in model.versions("article")[(1,)]:
...     print(version)
Version(transaction=1, end=2, operation=0, values={'name': 'a'})
Version(transaction=2, end=None, operation=2, values={'name': 'a'})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DELETE", "INSERT", "UPDATE", "HistoryModel", "Key", "Row", "State", "Version"]

INSERT, UPDATE, DELETE = 0, 1, 2

Key = tuple[Any, ...]
Row = Mapping[str, Any]
#: table name -> key -> the versioned columns of the row
State = Mapping[str, Mapping[Key, Row]]


@dataclass(frozen=True, slots=True)
class Version:
    """One state of one row; transactions are ordinals in the order of commit, from 1."""

    transaction: int
    end: int | None
    operation: int
    values: Row


@dataclass(slots=True)
class _Frame:
    """What is known inside a transaction or a savepoint: rows, and the last values of lost ones."""

    state: State
    last: dict[tuple[str, Key], Row] = field(default_factory=dict)


class HistoryModel:
    """The history of some entities; an entity is the tuple of the tables that make its rows.

    An entity has one table, or, with joined inheritance, several that share the key: a change in
    one of them makes a version in each table in which the object has a row.
    """

    def __init__(self, entities: Iterable[tuple[str, ...]]) -> None:
        self.entities = tuple(entities)
        self.tables = tuple(table for entity in self.entities for table in entity)
        #: the committed rows after each transaction; number 0 is the empty database
        self.states: list[State] = [{table: {} for table in self.tables}]
        self._rows: dict[str, dict[Key, list[tuple[int, int, Row]]]] = {
            table: {} for table in self.tables
        }
        self._frames = [_Frame(self.states[0])]

    def observe(self, state: State) -> None:
        """The tables hold this now. A row that is lost was last seen with its last values."""
        frame = self._frames[-1]
        for table in self.tables:
            for key, row in frame.state[table].items():
                if key not in state[table]:
                    frame.last[table, key] = row
        frame.state = state

    def savepoint(self) -> None:
        """A savepoint begins."""
        frame = self._frames[-1]
        self._frames.append(_Frame(frame.state, dict(frame.last)))

    def release(self) -> None:
        """The innermost savepoint is released: what was done in it belongs to the outer one."""
        frame = self._frames.pop()
        self._frames[-1] = frame

    def rollback_savepoint(self) -> None:
        """The innermost savepoint is rolled back: it never was."""
        self._frames.pop()

    def rollback(self) -> None:
        """The transaction is rolled back: it never was."""
        self._frames = [_Frame(self.committed)]

    def commit(self) -> int | None:
        """The transaction is committed; its ordinal, or ``None`` if nothing has changed."""
        frame = self._frames[-1]
        ordinal = len(self.states)
        changed = [
            self._record(ordinal, entity, key, frame)
            for entity in self.entities
            for key in self._keys(entity, frame.state)
        ]
        if not any(changed):
            self._frames = [_Frame(self.committed)]
            return None
        self.states.append(frame.state)
        self._frames = [_Frame(frame.state)]
        return ordinal

    @property
    def committed(self) -> State:
        """The rows after the last commit."""
        return self.states[-1]

    @property
    def current(self) -> State:
        """The rows as the running transaction sees them."""
        return self._frames[-1].state

    @property
    def depth(self) -> int:
        """How many savepoints are open."""
        return len(self._frames) - 1

    @property
    def transactions(self) -> range:
        """The ordinals of all transactions that changed something."""
        return range(1, len(self.states))

    def versions(self, table: str) -> dict[Key, list[Version]]:
        """The versions of each row that the table ever had, oldest first."""
        return {
            key: [
                Version(number, rows[place + 1][0] if place + 1 < len(rows) else None, kind, row)
                for place, (number, kind, row) in enumerate(rows)
            ]
            for key, rows in self._rows[table].items()
        }

    def _keys(self, entity: tuple[str, ...], state: State) -> list[Key]:
        return list(
            dict.fromkeys(
                key
                for source in (self.committed, state)
                for table in entity
                for key in source[table]
            )
        )

    def _record(self, ordinal: int, entity: tuple[str, ...], key: Key, frame: _Frame) -> bool:
        before = {t: self.committed[t][key] for t in entity if key in self.committed[t]}
        after = {t: frame.state[t][key] for t in entity if key in frame.state[t]}
        if before == after:
            return False
        for table in {**before, **after}:
            if table not in after:
                kind, row = DELETE, frame.last.get((table, key), before[table])
            elif table not in before:
                kind, row = INSERT, after[table]
            else:
                kind, row = UPDATE, after[table]
            self._rows[table].setdefault(key, []).append((ordinal, kind, row))
        return True
