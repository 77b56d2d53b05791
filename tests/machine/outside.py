"""SQL that neither the session nor its connection is told the meaning of, as rules.

``OutsideMachine`` is the machine with these rules beside all others. They write tables that triggers
record: as text in the session's transaction, or in one of a client that is no session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import rule

from .bulk import BulkMachine
from .machine import CHANGES, KINDS_BY_NAME, PICKS, THEN
from .model import Key
from .schema import KINDS, TRIGGERED, Kind
from .world import Stored, World

__all__ = ["OutsideMachine"]

FLAT = [kind for kind in KINDS if kind.name in TRIGGERED and not kind.joined]
JOINED = [kind for kind in KINDS if kind.joined]
CHANGES_OF_FLAT = CHANGES.filter(lambda change: change[0] in FLAT)
CHANGES_OF_TRIGGERED = CHANGES.filter(lambda change: change[0] in (*FLAT, *JOINED))
#: in the session's transaction, or in one of its own
WHERE = st.sampled_from(["session", "client"])


class OutsideMachine(BulkMachine):
    """All rules of :class:`BulkMachine`, and SQL that goes past the library."""

    def sql(
        self, what: str, where: str, write: Callable[[World], sa.TextClause], then: str
    ) -> None:
        """Execute one statement, in the session's transaction or as a client of its own."""
        if where == "session":

            def run(world: World) -> int:
                done: Any = world.session.execute(write(world))
                # it knows nothing of what was written
                world.session.expire_all()
                return int(done.rowcount)

            if self.flush() and self.both(f"{what}, by the session", run):
                self.afterwards(then)
            return
        self.commit(len(self.log))
        if self.plain.session.in_transaction():
            self.roll_back()

        def run_aside(world: World) -> int:
            with world.engine.begin() as connection:
                done = connection.execute(write(world)).rowcount
            world.session.expire_all()
            return done

        if self.both(f"{what}, by a client", run_aside):
            self.committed(len(self.log))

    @rule(change=CHANGES_OF_TRIGGERED, pick=st.one_of(st.none(), PICKS), where=WHERE, then=THEN)
    def update_by_sql(
        self, change: tuple[Kind, Mapping[str, Any]], pick: int | None, where: str, then: str
    ) -> None:
        """All rows of one table, or one; of joined inheritance, of one of the object's tables."""
        kind, values = change
        target = None if pick is None else self.choose(kind.name, pick, fresh=False)

        def write(world: World) -> sa.TextClause:
            columns = _columns(world, kind)
            table = columns[next(iter(values))].table
            row = {columns[k]: v for k, v in values.items() if columns[k].table is table}
            key = _key(table, target.key) if isinstance(target, Stored) else {}
            return _text(f"UPDATE {table.name} SET {{}}{{}}", row, key)

        self.sql(f"UPDATE {kind} {values} where {target}", where, write, then)

    @rule(
        kind=st.sampled_from([*FLAT, KINDS_BY_NAME["Article"]]), pick=PICKS, where=WHERE, then=THEN
    )
    def delete_by_sql(self, kind: Kind, pick: int, where: str, then: str) -> None:
        """One row, and what the database deletes and changes with it."""
        target = self.choose(kind.name, pick, fresh=False)
        if not isinstance(target, Stored):
            return
        gone: Key = target.key

        def write(world: World) -> sa.TextClause:
            table = world.models.live[kind.table]
            return _text(f"DELETE FROM {table.name}{{}}{{}}", {}, _key(table, gone))

        self.sql(f"DELETE {target}", where, write, then)

    @rule(change=CHANGES_OF_FLAT, given=PICKS, where=WHERE, then=THEN)
    def insert_by_sql(
        self, change: tuple[Kind, Mapping[str, Any]], given: int, where: str, then: str
    ) -> None:
        """One row, with a key that may be in use, or have been."""
        kind, values = change
        key = kind.given[given % len(kind.given)]

        def write(world: World) -> sa.TextClause:
            columns, table = _columns(world, kind), world.models.live[kind.table]
            row = {**_key(table, key), **{columns[k]: v for k, v in values.items()}}
            names = ", ".join(column.name for column in row)
            places = ", ".join(f":{column.name}" for column in row)
            return _bound(f"INSERT INTO {table.name} ({names}) VALUES ({places})", row)

        self.sql(f"INSERT {kind}{key} {values}", where, write, then)


def _columns(world: World, kind: Kind) -> Mapping[str, sa.Column[Any]]:
    """Attribute -> column."""
    found: Mapping[str, sa.Column[Any]] = sa.inspect(world.models[kind.name]).columns
    return found


def _key(table: Any, key: Key) -> dict[sa.Column[Any], Any]:
    return dict(zip(table.primary_key.columns, key, strict=True))


def _text(pattern: str, row: Mapping[Any, Any], key: Mapping[Any, Any]) -> sa.TextClause:
    values = ", ".join(f"{column.name} = :{column.name}" for column in row)
    where = " AND ".join(f"{column.name} = :{column.name}" for column in key)
    return _bound(pattern.format(values, f" WHERE {where}" if where else ""), {**row, **key})


def _bound(statement: str, row: Mapping[Any, Any]) -> sa.TextClause:
    parameters = (sa.bindparam(column.name, value, column.type) for column, value in row.items())
    return sa.text(statement).bindparams(*parameters)
