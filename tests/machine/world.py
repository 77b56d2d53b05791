"""One database, one session, and the mapped classes in it: plain or versioned.

The machine does everything in two worlds side by side. Objects are named by what can be said in
both: a key, or the place in the list of objects that are not flushed yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, SessionTransaction

from .graph import Outcome
from .model import Key, State
from .schema import Kind, Models

__all__ = ["Fresh", "Stored", "Target", "World", "read_state"]


@dataclass(frozen=True, slots=True)
class Stored:
    """An object with a row, by class name and key."""

    name: str
    key: Key

    def __str__(self) -> str:
        return f"{self.name}{self.key}"


@dataclass(frozen=True, slots=True)
class Fresh:
    """An object that was added and is not flushed yet, by its place in the list of these."""

    name: str
    place: int

    def __str__(self) -> str:
        return f"new {self.name} #{self.place}"


Target = Stored | Fresh


def read_state(
    connection: Connection, models: Models, tables: Iterable[str] | None = None
) -> State:
    """What the live tables hold, as this connection sees it: the versioned columns of each row."""
    state = {}
    for name in models.live if tables is None else tables:
        statement, names, places = models.reads[name]
        state[name] = {
            tuple(row[place] for place in places): dict(zip(names, row, strict=True))
            for row in connection.execute(statement)
        }
    return state


@dataclass(kw_only=True)
class World:
    """A session on classes.

    ``watch`` is called before a COMMIT, and before a statement that can make a row disappear, with
    the tables in which it can (``None``: in any).
    """

    title: str
    engine: Engine
    models: Models
    watch: Callable[[Connection, list[str] | None], None] | None = None
    session: Session = field(init=False)
    nested: list[SessionTransaction] = field(default_factory=list)
    fresh: list[Any] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    """Objects that a rule asked for by name."""
    held: list[Any] = field(default_factory=list)
    """All objects: they leave the identity map when told to, not when garbage is collected."""
    wrote: bool = False
    """Whether rows may have changed since somebody looked."""

    def __post_init__(self) -> None:
        self._begin(Session(self.engine))
        if self.watch:
            sa.event.listen(self.engine, "before_cursor_execute", self._before)
            sa.event.listen(self.engine, "commit", self._commit)

    def close(self) -> None:
        """End the session, for good."""
        self.session.close()
        if self.watch:
            sa.event.remove(self.engine, "before_cursor_execute", self._before)
            sa.event.remove(self.engine, "commit", self._commit)

    def _before(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split(maxsplit=3)
        word = words[0].upper()
        if self.watch and word == "UPDATE":
            table = words[1].strip('"`')
            self.watch(connection, [table] if table in self.models.live else None)
        elif self.watch and word in ("DELETE", "REPLACE"):
            self.watch(connection, None)
        self.wrote = self.wrote or word in ("INSERT", "UPDATE", "DELETE", "REPLACE", "WITH")

    def _commit(self, connection: Connection) -> None:
        # A commit can flush once more what a flush has put off.
        if self.watch and self.wrote:
            self.watch(connection, None)
            self.wrote = False

    def open(self, *, autoflush: bool, expire_on_commit: bool) -> None:
        """Go on in a new session."""
        self.session.close()
        self.forget()
        self.nested.clear()
        self._begin(Session(self.engine, autoflush=autoflush, expire_on_commit=expire_on_commit))

    def _begin(self, session: Session) -> None:
        self.session = session
        for name in ("loaded_as_persistent", "transient_to_pending"):
            sa.event.listen(session, name, lambda _, obj: self.held.append(obj))

    def roll_back(self) -> None:
        """Roll back everything, savepoints included."""
        self.session.rollback()
        self.nested.clear()

    def expunge_all(self) -> None:
        """Let the session go on without any object."""
        self.session.expunge_all()
        self.forget()

    def forget(self) -> None:
        """Let go of all objects."""
        self.fresh.clear()
        self.kept.clear()
        self.held.clear()

    def add(self, obj: Any) -> None:
        """Add a new object to the session."""
        self.session.add(obj)
        self.fresh.append(obj)

    def write(self, outcome: Outcome) -> None:
        """Let the rows become what an outcome says."""
        connection, live = self.session.connection(), self.models.live
        self.session.expire_all()
        state = read_state(connection, self.models)
        order = {name: place for place, name in enumerate(live)}
        rows = [
            (place, {n: v for n, v in values.items() if not live[place[0]].c[n].computed})
            for place, values in sorted(outcome.rows.items(), key=lambda item: order[item[0][0]])
        ]
        for (name, key), values in rows:
            if key not in state[name]:
                columns = live[name].columns
                # rows that refer to each other: first without
                refers = {c.name for c in columns if c.foreign_keys and c.nullable}
                made = {n: None if n in refers else v for n, v in values.items()}
                connection.execute(sa.insert(live[name]).values(made))
                state[name] = {**state[name], key: made}
        for (name, key), values in rows:
            here = zip(self.models.key_columns(name), key, strict=True)
            changed = {n: v for n, v in values.items() if v != state[name][key].get(n, v)}
            if changed:
                table = live[name]
                where = (column == value for column, value in here)
                connection.execute(sa.update(table).where(*where).values(changed))
        for name, link in outcome.unlinked:
            table = live[name]
            where = (table.c[column] == value for column, value in link.items())
            connection.execute(sa.delete(table).where(*where))
        for name, link in outcome.linked:
            connection.execute(sa.insert(live[name]).values(**link))
        self.session.expire_all()
        gone = []
        for name, key in outcome.deleted:
            classes: list[Any] = [*self.models.classes.values()]
            cls = min((c for c in classes if c.__tablename__ == name), key=lambda c: len(c.mro()))
            gone.append(self.session.get_one(cls, key))
        # together: a flush for each would delete and change others along with it
        for obj in gone:
            self.session.delete(obj)

    def make(self, kind: Kind, key: Key | None, values: Mapping[str, Any]) -> Any:
        """A new object, with a given key or with none."""
        given = dict(zip(kind.key, key, strict=True)) if key is not None else {}
        return self.models[kind.name](**given, **values)

    def find(self, target: Target) -> Any:
        """The object, or ``None`` if there is none in this session."""
        if isinstance(target, Fresh):
            return self.fresh[target.place]
        obj = self.session.get(self.models[target.name], target.key)
        if obj is not None:
            self.kept[str(target)] = obj
        return obj
