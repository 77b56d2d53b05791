"""Bulk and Core statements, as rules.

``BulkMachine`` is the machine with these rules beside all others. The model needs nothing new: it
looks at the tables of the plain world before and after each statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import rule
from sqlalchemy.orm import Session

from .machine import CHANGES, KINDS_BY_NAME, NUMBERED, PICKS, THEN, HistoryMachine
from .schema import KINDS, Kind
from .world import Stored, World

__all__ = ["BulkMachine"]

SYNCHRONIZE = st.sampled_from(["auto", "evaluate", "fetch", False])
#: kinds with one table: what a bulk statement can write
FLAT = [kind for kind in KINDS if not kind.joined and kind.values]
CHANGES_OF_FLAT = CHANGES.filter(lambda change: change[0] in FLAT)


class BulkMachine(HistoryMachine):
    """All rules of :class:`HistoryMachine`, and statements that bypass the unit of work."""

    def statement(self, what: str, run: Any, then: str) -> None:
        """Flush, execute, look."""
        if self.flush() and self.both(what, run):
            self.afterwards(then)

    @rule(change=CHANGES_OF_FLAT, key=st.one_of(st.none(), PICKS), how=SYNCHRONIZE, then=THEN)
    def update_rows(
        self, change: tuple[Kind, Mapping[str, Any]], key: int | None, how: Any, then: str
    ) -> None:
        """``update(Model)``, of all rows or of one."""
        kind, values = change
        target = None if key is None else self.choose(kind.name, key, fresh=False)

        def run(world: World) -> int:
            cls = world.models[kind.name]
            statement = sa.update(cls).values({getattr(cls, k): v for k, v in values.items()})
            if isinstance(target, Stored):
                statement = statement.where(*_is(cls, kind, target.key))
            options = {"synchronize_session": how}
            return int(world.session.execute(statement, execution_options=options).rowcount)

        self.statement(f"update({kind}) {values} where {target}, {how}", run, then)

    @rule(kind=st.sampled_from(NUMBERED), add=st.sampled_from([0, 1]), how=SYNCHRONIZE, then=THEN)
    def update_rows_by_expression(self, kind: Kind, add: int, how: Any, then: str) -> None:
        """``update(Model).values(n=Model.n + 1)``: adding 0 or to NULL is not a change."""
        if kind.joined:
            return

        def run(world: World) -> int:
            cls = world.models[kind.name]
            column = getattr(cls, str(kind.number))
            statement = sa.update(cls).values({column: column + add})
            options = {"synchronize_session": how}
            return int(world.session.execute(statement, execution_options=options).rowcount)

        self.statement(f"update({kind}) {kind.number} + {add}, {how}", run, then)

    @rule(kind=st.sampled_from(["Entry", "Cell", "Shape", "Circle"]), pick=PICKS, then=THEN)
    def delete_rows(self, kind: str, pick: int, then: str) -> None:
        """``delete(Model)`` of one row, of a class that nothing refers to."""
        target = self.choose(kind, pick, fresh=False)

        def run(world: World) -> int:
            cls = world.models[kind]
            statement = sa.delete(cls)
            if isinstance(target, Stored):
                statement = statement.where(*_is(cls, KINDS_BY_NAME[kind], target.key))
            return int(world.session.execute(statement).rowcount)

        self.statement(f"delete({kind}) where {target}", run, then)

    @rule(change=CHANGES_OF_FLAT, given=st.one_of(st.none(), PICKS), core=st.booleans(), then=THEN)
    def insert_row(
        self,
        change: tuple[Kind, Mapping[str, Any]],
        given: int | None,
        core: bool,
        then: str,
    ) -> None:
        """``insert(Model)`` through the session, or of its table through the connection."""
        kind, values = change
        if kind.identity is not None:
            return
        key: Mapping[str, Any] = {}
        if given is not None or not kind.made:
            found = kind.given[(given or 0) % len(kind.given)]
            key = dict(zip(kind.key, found, strict=True))

        def run(world: World) -> None:
            cls = world.models[kind.name]
            if core:
                table = world.models.live[kind.table]
                columns = sa.inspect(cls).columns
                row = {columns[name].name: value for name, value in {**key, **values}.items()}
                world.session.connection().execute(sa.insert(table), [row])
            else:
                world.session.execute(sa.insert(cls), [{**key, **values}])

        self.statement(f"insert({kind}) {key} {values}, {core=}", run, then)

    @rule(link=st.booleans(), pick=PICKS, other=PICKS, then=THEN)
    def link_by_statement(self, link: bool, pick: int, other: int, then: str) -> None:
        """INSERT and DELETE on an association table."""
        article = self.choose("Article", pick, fresh=False)
        tag = self.choose("Tag", other, fresh=False)
        if not isinstance(article, Stored) or not isinstance(tag, Stored):
            return
        article_id, tag_id = article.key[0], tag.key[0]

        def run(world: World) -> Any:
            table = world.models.live["article_tag"]
            execute = world.session.execute
            # Collections that are loaded would not know.
            world.session.expire_all()
            if link:
                execute(sa.insert(table).values(article_id=article_id, tag_id=tag_id))
                return None
            return execute(sa.delete(table).where(table.c.article_id == article_id)).rowcount

        self.statement(f"{'link' if link else 'unlink'} {article} {tag}", run, then)

    @rule(kind=st.sampled_from(FLAT), how=st.sampled_from(["insert", "update"]), then=THEN)
    def bulk_mappings(self, kind: Kind, how: str, then: str) -> None:
        """The legacy bulk methods of a session."""
        if kind.identity is not None or not kind.made:
            return
        keys = kind.keys(self.model.current)
        names = sorted(kind.values)

        def run(world: World) -> None:
            cls = world.models[kind.name]
            session: Session = world.session
            if how == "insert":
                rows = [{name: kind.values[name][place] for name in names} for place in (1, 2)]
                session.bulk_insert_mappings(sa.inspect(cls), rows)
            else:
                rows = [
                    {**dict(zip(kind.key, key, strict=True)), names[0]: kind.values[names[0]][1]}
                    for key in keys
                ]
                session.bulk_update_mappings(sa.inspect(cls), rows)
            session.expire_all()

        self.statement(f"bulk {how} {kind}", run, then)


def _is(cls: Any, kind: Kind, key: tuple[Any, ...]) -> list[sa.ColumnElement[bool]]:
    return [getattr(cls, name) == value for name, value in zip(kind.key, key, strict=True)]
