"""A naive recorder on SQLite, right or wrong on purpose, to test the machine.

Just before a COMMIT it compares all live tables with what they held before the transaction, and
writes the version rows; before each statement it reads what the tables hold, for the last values of
rows that are deleted. It is slow and simple, and has no version classes: only tables are judged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from .model import Key
from .schema import ENTITIES, Models, build_models

__all__ = ["FAULTS", "Recorder", "build_recorded"]

#: what can be wrong -> what happens then
FAULTS: Mapping[str, str] = {
    "case is equal": "a change of case is no change",
    "child only": "a changed child of joined inheritance has no version in the base table",
    "closes too much": "open versions of other rows are closed",
    "excluded counts": "an UPDATE of an excluded column makes a version",
    "forgets a version": "an UPDATE of a tag is not recorded",
    "forgets an association": "a removed link is not recorded",
    "forgets to close": "the end of the validity stays open",
    "insert is update": "an object inserted and changed in one transaction gets an UPDATE version",
    "key change is update": "no DELETE of the old key, an UPDATE of the new one",
    "loads attributes": "a flush loads a deferred attribute",
    "lost transaction": "no transaction row where only association rows changed",
    "null is empty": "NULL is stored as an empty string",
    "phantom transaction": "a transaction row without a net change",
    "records equal values": "an UPDATE version for rows that are as they were",
    "savepoint leaks": "a row inserted in a savepoint that is rolled back gets a version",
    "stale delete": "a DELETE version has the values from before the transaction",
    "touches live rows": "the user's own row is changed",
}

Rows = dict[str, dict[Key, dict[str, Any]]]


def build_recorded(strategy: str) -> Models:
    """The classes without the library, and version tables made by hand."""
    models = build_models(versioned=False)
    metadata = models.base.metadata
    sa.Table("transaction", metadata, sa.Column("id", sa.Integer, primary_key=True))
    for name in models.live:
        keys = {column.name for column in models.key_columns(name)}
        extra = [sa.Column("operation_type", sa.SmallInteger, nullable=False)]
        if strategy == "validity":
            extra.append(sa.Column("end_transaction_id", sa.BigInteger))
        sa.Table(
            f"{name}_version",
            metadata,
            *(
                sa.Column(column.name, column.type, primary_key=column.name in keys)
                for column in models.versioned_columns(name)
            ),
            sa.Column("transaction_id", sa.BigInteger, primary_key=True, autoincrement=False),
            *extra,
        )
    return models


class Recorder:
    """Records what is committed on an engine."""

    def __init__(self, engine: Engine, models: Models, strategy: str, fault: str = "") -> None:
        self.engine = engine
        self.models = models
        self.strategy = strategy
        self.fault = fault
        self.reset()

    def reset(self) -> None:
        """The tables are empty."""
        self.before: Rows = {name: {} for name in self.models.live}
        self.written: set[str] = set()
        self.leaked: Rows = {}
        self.seen = [self.before]
        self.marks: list[int] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Listen to the engine."""
        listeners: list[tuple[Any, str, Callable[..., Any]]] = [
            (self.engine, "before_cursor_execute", self._statement),
            (self.engine, "commit", self._commit),
            (self.engine, "rollback", lambda _: self._restart(self.before)),
            (self.engine, "savepoint", lambda *_: self.marks.append(len(self.seen))),
            (self.engine, "release_savepoint", lambda *_: self.marks.pop()),
            (self.engine, "rollback_savepoint", self._rollback_savepoint),
            (Session, "after_flush", self._flushed),
        ]
        for listener in listeners:
            sa.event.listen(*listener)
        try:
            yield
        finally:
            for listener in listeners:
                sa.event.remove(*listener)

    def _statement(self, connection: Connection, _: Any, statement: str, *__: Any) -> None:
        words = statement.split()
        if words[0] in ("INSERT", "UPDATE", "DELETE") and "_version" not in statement:
            self.seen.append(self._read(connection))
            self.written.add(words[1 if words[0] == "UPDATE" else 2].strip('"'))

    def _rollback_savepoint(self, connection: Connection, *_: Any) -> None:
        if self.fault == "savepoint leaks":
            self.leaked = self._read(connection)
        del self.seen[self.marks.pop() :]

    def _flushed(self, session: Session, _: Any) -> None:
        if self.fault == "loads attributes" and session.get_bind() is self.engine:
            for obj in session.dirty:
                getattr(obj, "body", None)

    def _restart(self, rows: Rows) -> None:
        self.before = rows
        self.seen = [rows]
        self.marks.clear()
        self.written.clear()
        self.leaked = {}

    def _read(self, connection: Connection) -> Rows:
        rows: Rows = {}
        for name, table in self.models.live.items():
            keys = [column.name for column in self.models.key_columns(name)]
            found = connection.execute(sa.select(*table.c)).mappings()
            rows[name] = {tuple(row[key] for key in keys): dict(row) for row in found}
        return rows

    def _commit(self, connection: Connection) -> None:
        after = self._read(connection)
        records = self._records(after)
        phantom = self.fault == "phantom transaction" and self.written
        if records or phantom:
            identity = self._number(connection, records)
            for name, key, operation, values in records:
                self._write(connection, identity, name, key, operation, values)
        if self.fault == "touches live rows":
            connection.exec_driver_sql("UPDATE tag SET label = 'a' WHERE label = 'A'")
        self._restart(after)

    def _number(self, connection: Connection, records: list[Any]) -> int:
        links = {"article_tag", "article_link", "category_tag"}
        last = connection.exec_driver_sql('SELECT coalesce(max(id), 0) FROM "transaction"').scalar()
        identity = int(last or 0) + 1
        if not (self.fault == "lost transaction" and {record[0] for record in records} <= links):
            connection.exec_driver_sql('INSERT INTO "transaction" (id) VALUES (?)', (identity,))
        return identity

    def _records(self, after: Rows) -> list[tuple[str, Key, int, dict[str, Any]]]:
        records = []
        for entity in ENTITIES:
            keys = {key for rows in (self.before, after) for table in entity for key in rows[table]}
            for key in sorted(keys, key=repr):
                if not any(self._differs(table, key, after) for table in entity):
                    continue
                found = (self._record(table, key, after) for table in entity)
                records += [record for record in found if record]
        if self.leaked:
            records += [
                (table, key, 0, values)
                for table, rows in self.leaked.items()
                for key, values in rows.items()
                if key not in after[table] and key not in self.before[table]
            ]
        return records

    def _differs(self, table: str, key: Key, after: Rows) -> bool:
        old, new = self.before[table].get(key), after[table].get(key)
        if self.fault == "records equal values" and table in self.written:
            return True
        if self.fault == "excluded counts" or old is None or new is None:
            return old != new
        names = [column.name for column in self.models.versioned_columns(table)]
        pairs = [(old[name], new[name]) for name in names]
        if self.fault == "case is equal":
            pairs = [
                (a.lower() if isinstance(a, str) else a, b.lower() if isinstance(b, str) else b)
                for a, b in pairs
            ]
        return any(a != b for a, b in pairs)

    def _record(
        self, table: str, key: Key, after: Rows
    ) -> tuple[str, Key, int, dict[str, Any]] | None:
        old, new = self.before[table].get(key), after[table].get(key)
        fault = self.fault
        if new is None and old is None:
            return None
        if new is None:
            if fault == "forgets an association" and table == "article_tag":
                return None
            if fault == "key change is update" and table == "term":
                return None
            last = next(rows[table][key] for rows in reversed(self.seen) if key in rows[table])
            return table, key, 2, (old or last) if fault == "stale delete" else last
        if old is None:
            states = [rows[table][key] for rows in self.seen if key in rows[table]]
            changed = fault == "insert is update" and any(state != new for state in states)
            renamed = fault == "key change is update" and table == "term"
            return table, key, int(changed or renamed), new
        if fault == "forgets a version" and table == "tag":
            return None
        if fault == "child only" and table == "item" and old == new:
            return None
        return table, key, 1, new

    def _write(
        self,
        connection: Connection,
        identity: int,
        name: str,
        key: Key,
        operation: int,
        values: dict[str, Any],
    ) -> None:
        version = self.models.base.metadata.tables[f"{name}_version"]
        own = {column: value for column, value in values.items() if column in version.c}
        if self.fault == "null is empty" and "label" in own:
            own["label"] = own["label"] or ""
        if self.strategy == "validity" and self.fault != "forgets to close":
            statement = sa.update(version).where(version.c.end_transaction_id.is_(None))
            if self.fault != "closes too much":
                columns = [version.c[column.name] for column in self.models.key_columns(name)]
                statement = statement.where(
                    *(column == value for column, value in zip(columns, key, strict=True))
                )
            statement = statement.where(version.c.transaction_id != identity)
            connection.execute(statement.values(end_transaction_id=identity))
        connection.execute(
            sa.insert(version).values(transaction_id=identity, operation_type=operation, **own)
        )
