"""Who is measured: one small adapter each.

A contender is told when the models are about to be declared and when they are, and it commits the
work. To add one: a subclass here, an entry in :data:`CONTENDERS`, its name in
``__main__.CONTENDERS`` and, if it needs packages, an environment in :mod:`benchmarks.environments`.
No library is imported before :meth:`Contender.load`.
"""

from __future__ import annotations

import datetime as dt
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    bindparam,
    event,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapper, Session, attributes, object_mapper

INSERT, UPDATE, DELETE = 0, 1, 2


class Changed(NamedTuple):
    """What a workload has changed since the last flush."""

    inserted: Sequence[Any] = ()
    updated: Sequence[Any] = ()
    deleted: Sequence[Any] = ()
    linked: tuple[Table, Sequence[Mapping[str, Any]]] | None = None

    def objects(self) -> Iterable[tuple[int, Sequence[Any]]]:
        """The objects with the operation of their versions."""
        return (INSERT, self.inserted), (UPDATE, self.updated), (DELETE, self.deleted)


class Contender:
    """The ORM work alone, unversioned: what the others are compared with."""

    name = "plain"
    environment = "core"
    versioned = False
    #: Factors on the size of workloads that would take this contender minutes;
    #: plain runs at that size too, and the ratio is taken there.
    scale: Mapping[str, float] = {}
    #: Workloads that it takes no part in.
    skips: frozenset[str] = frozenset({"import", "R1", "R2", "R3", "R4"})
    #: Kinds of database that it works on; None: on all of them.
    databases: frozenset[str] | None = None
    #: Whether its history is in the tables ``transaction`` and ``*_version``, so that rows can be
    #: prepared for it.
    same_tables = True

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy

    @classmethod
    def works_on(cls, database: str) -> bool:
        """Whether it knows this kind of database."""
        return cls.databases is None or database in cls.databases

    def load(self) -> None:
        """Import the library."""

    def before_models(self) -> None:
        """Switch versioning on."""

    def new_base(self) -> type[DeclarativeBase]:
        """The base class of the models."""

        class Base(DeclarativeBase):
            pass

        return Base

    def after_models(self, base: type[DeclarativeBase]) -> None:
        """Called when the models are declared and configured."""

    def create_tables(self, metadata: MetaData, engine: Engine) -> None:
        """Create all tables of *metadata*."""
        metadata.create_all(engine)

    def unseen(self, connection: Connection) -> AbstractContextManager[None]:
        """No trigger sees what is done inside."""
        return nullcontext()

    def other_rows(self, connection: Connection) -> Mapping[str, Mapping[str, int]] | None:
        """What it recorded, by table and operation, where that is not in the same tables."""
        return None

    def flush(self, session: Session, changed: Changed) -> None:
        """Flush; *changed* is for those who have to be told."""
        session.flush()

    def commit(self, session: Session, changed: Changed) -> None:
        """Commit; *changed* is for those who have to be told."""
        session.commit()

    def bulk_update(self, session: Session, statement: Any) -> None:
        """Execute an ORM UPDATE of a whole table and commit."""
        session.execute(statement)
        session.commit()

    def version_class(self, model: Any) -> Any:
        """The version class of *model*."""
        raise NotImplementedError

    def eager(self, collection: Any) -> Sequence[Any]:
        """Loader options for a collection of a version class, where they are supported."""
        return ()

    def as_of(self, model: Any, transaction: int) -> Any:
        """A SELECT of the rows of *model* at *transaction*; here: as they are now."""
        return select(model)


class Handwritten(Contender):
    """Plain ORM plus what a careful user does without a library.

    One INSERT of a transaction, one Core executemany of version dicts and one executemany UPDATE
    that closes per table; for a bulk UPDATE, set-based statements. Version tables have the primary
    key (key, transaction_id) and an index on transaction_id.
    """

    name = "handwritten"
    skips = frozenset({"W10", "W13", "import", "R1", "R2", "R3", "R4"})

    def after_models(self, base: type[DeclarativeBase]) -> None:
        metadata = base.metadata
        parents = list(metadata.tables.values())
        self.transaction = Table(
            "transaction",
            metadata,
            Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
            Column("issued_at", DateTime),
            Column("remote_addr", String(50)),
        )
        self.versions = {parent: self._version_table(parent) for parent in parents}
        self.names = {parent: [column.name for column in parent.columns] for parent in parents}
        self.inserts = {parent: insert(version) for parent, version in self.versions.items()}
        self.closes = {parent: self._close(parent) for parent in parents}

    def _version_table(self, parent: Table) -> Table:
        columns: list[Column[Any]] = [
            Column(column.name, column.type, primary_key=column.primary_key, autoincrement=False)
            for column in parent.columns
        ]
        columns.append(Column("transaction_id", BigInteger, primary_key=True, autoincrement=False))
        if self.strategy == "validity":
            columns.append(Column("end_transaction_id", BigInteger))
        columns.append(Column("operation_type", SmallInteger, nullable=False))
        name = f"{parent.name}_version"
        index = Index(f"ix_{name}_transaction_id", "transaction_id")
        return Table(name, parent.metadata, *columns, index)

    def _close(self, parent: Table) -> Any:
        version = self.versions[parent]
        if self.strategy != "validity":
            return None
        keys = [version.c[key.name] == bindparam(f"key_{key.name}") for key in parent.primary_key]
        open_row = version.c.end_transaction_id.is_(None)
        return update(version).where(*keys, open_row).values(end_transaction_id=bindparam("tx"))

    def _begin(self, session: Session) -> int:
        now = dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)
        result: Any = session.execute(insert(self.transaction).values(issued_at=now))
        key: int = result.inserted_primary_key[0]
        return key

    def flush(self, session: Session, changed: Changed) -> None:
        session.flush()
        rows: dict[Table, list[dict[str, Any]]] = {}
        closes: dict[Table, list[dict[str, Any]]] = {}
        tx = self._begin(session)
        for operation, objects in changed.objects():
            for instance in objects:
                table = instance.__table__
                values = instance.__dict__
                row = {name: values[name] for name in self.names[table]}
                row["transaction_id"] = tx
                row["operation_type"] = operation
                rows.setdefault(table, []).append(row)
                if operation != INSERT:
                    closes.setdefault(table, []).append({"key_id": values["id"], "tx": tx})
        if changed.linked is not None:
            table, links = changed.linked
            rows[table] = [{**link, "transaction_id": tx, "operation_type": 0} for link in links]
        if self.strategy == "validity":
            for table, keys in closes.items():
                session.execute(self.closes[table], keys)
        for table, versions in rows.items():
            session.execute(self.inserts[table], versions)

    def commit(self, session: Session, changed: Changed) -> None:
        self.flush(session, changed)
        session.commit()

    def bulk_update(self, session: Session, statement: Any) -> None:
        table: Table = statement.table
        version = self.versions[table]
        tx = self._begin(session)
        session.execute(statement)
        if self.strategy == "validity":
            live = valid(version.c, tx)
            session.execute(update(version).where(*live).values(end_transaction_id=tx))
        literals: list[Any] = [bindparam("tx", tx), bindparam("operation", UPDATE)]
        names = [*self.names[table], "transaction_id", "operation_type"]
        session.execute(insert(version).from_select(names, select(table, *literals)))
        session.commit()

    def as_of(self, model: Any, transaction: int) -> Any:
        version = self.versions[model.__table__]
        if self.strategy == "validity":
            return select(version).where(*valid(version.c, transaction))
        last = (
            select(version.c.id, func.max(version.c.transaction_id).label("tx"))
            .where(version.c.transaction_id <= transaction)
            .group_by(version.c.id)
            .subquery()
        )
        on = (version.c.id == last.c.id) & (version.c.transaction_id == last.c.tx)
        return select(version).join(last, on).where(version.c.operation_type != DELETE)


class Floor(Handwritten):
    """The least that could be done, by somebody who knows what the workload changes.

    The events that a recorder has to listen to are listened to, and nothing is done there; then each
    table gets the SQL that fits it best, past SQLAlchemy, through the driver's cursor. Nothing is
    found out, checked, or kept for later flushes.
    """

    name = "floor"
    skips = Handwritten.skips | {"W9", "R5"}

    def after_models(self, base: type[DeclarativeBase]) -> None:
        super().after_models(base)
        for name in ("after_begin", "before_flush", "after_flush", "do_orm_execute"):
            event.listen(Session, name, _listen_only)
        event.listen(Session, "after_commit", _listen_only)
        event.listen(Session, "after_transaction_end", _listen_only)
        for name in ("before_execute", "before_cursor_execute", "after_execute", "handle_error"):
            event.listen(Engine, name, _listen_only)

    def flush(self, session: Session, changed: Changed) -> None:
        session.flush()
        connection = session.connection()
        self._kind = connection.dialect.name
        cursor = connection.connection.cursor()
        now = dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)
        quoted = connection.dialect.identifier_preparer.format_table(self.transaction)
        insert_row = f"INSERT INTO {quoted} (issued_at) VALUES ({self._mark()})"
        if self._kind == "postgresql":
            cursor.execute(f"{insert_row} RETURNING id", [now])
            tx = cursor.fetchone()[0]
        else:
            cursor.execute(insert_row, [now.isoformat(" ")])
            tx = cursor.lastrowid
        keys_of: dict[tuple[Table, int], list[int]] = {}
        for operation, objects in changed.objects():
            for instance in objects:
                key = instance.__dict__["id"]
                keys_of.setdefault((instance.__table__, operation), []).append(key)
        for (table, operation), keys in keys_of.items():
            version, columns = self.versions[table].name, ", ".join(self.names[table])
            which, parameters = self._which(keys)
            if operation != INSERT and self.strategy == "validity":
                cursor.execute(
                    f"UPDATE {version} SET end_transaction_id = {tx} "
                    f"WHERE id {which} AND end_transaction_id IS NULL",
                    parameters,
                )
            source = table.name if operation != DELETE else version
            where = f"id {which}"
            if operation == DELETE and self.strategy == "validity":
                where += f" AND end_transaction_id = {tx}"
            elif operation == DELETE:
                latest = f"SELECT max(v.transaction_id) FROM {version} v WHERE v.id = {version}.id"
                where += f" AND transaction_id = ({latest})"
            cursor.execute(
                f"INSERT INTO {version} ({columns}, transaction_id, operation_type) "
                f"SELECT {columns}, {tx}, {operation} FROM {source} WHERE {where}",
                parameters,
            )
        if changed.linked is not None:
            table, links = changed.linked
            names = self.names[table]
            cursor.executemany(
                f"INSERT INTO {self.versions[table].name} ({', '.join(names)}, transaction_id, "
                f"operation_type) VALUES ({', '.join([self._mark()] * len(names))}, {tx}, 0)",
                [tuple(link[name] for name in names) for link in links],
            )

    def _mark(self) -> str:
        return "?" if self._kind == "sqlite" else "%s"

    def _which(self, keys: list[int]) -> tuple[str, Sequence[Any]]:
        """What follows the name of a key that is one of *keys*."""
        if len(keys) == 1:
            return f"= {self._mark()}", keys
        if self._kind == "sqlite":
            return "IN (SELECT value FROM json_each(?))", [json.dumps(keys)]
        if self._kind == "postgresql":
            return "= ANY(%s)", [keys]
        return f"IN ({', '.join(map(str, keys))})", ()


def _listen_only(*arguments: Any) -> None:
    pass


class Library(Contender):
    """A library with the surface of sqlalchemy-history and Continuum."""

    versioned = True
    skips = frozenset()
    package: str
    options: Mapping[str, Any] = {}

    def load(self) -> None:
        self.library: Any = importlib.import_module(self.package)

    def before_models(self) -> None:
        self.load()
        options = {"strategy": self.strategy, **self.options}
        self.library.make_versioned(user_cls=None, options=options)

    def version_class(self, model: Any) -> Any:
        return self.library.version_class(model)

    def as_of(self, model: Any, transaction: int) -> Any:
        """The peers have none; this is what their users write by hand."""
        version = self.version_class(model)
        if self.strategy == "validity":
            return select(version).where(*valid(version, transaction))
        other = version.__table__.alias()
        last = (
            select(func.max(other.c.transaction_id))
            .where(other.c.id == version.id, other.c.transaction_id <= transaction)
            .scalar_subquery()
        )
        return select(version).where(
            version.transaction_id == last, version.operation_type != DELETE
        )


class Ours(Library):
    """The checkout that we are in, as it lies in the working tree."""

    name = "ours"
    package = "sqlalchemy_history"

    def eager(self, collection: Any) -> Sequence[Any]:
        orm: Any = importlib.import_module("sqlalchemy.orm")
        # selectinload() takes one statement for each 500 versions, this one a single one
        return (orm.subqueryload(collection),)

    def as_of(self, model: Any, transaction: int) -> Any:
        return self.library.as_of(model, transaction)


#: What triggers do not change, or what needs an old history beneath triggers.
NOT_OF_TRIGGERS = frozenset({"W10", "import", "R1", "R2", "R3", "R4", "R5"})


class OursNative(Ours):
    """The same with triggers as the recorders."""

    name = "ours-native"
    options: Mapping[str, Any] = {"native_versioning": True}
    skips = NOT_OF_TRIGGERS

    @contextmanager
    def unseen(self, connection: Connection) -> Iterator[None]:
        native: Any = importlib.import_module("sqlalchemy_history.native")
        tables = [plan.parent for plan in self.library.versioning_manager.native.table_plans()]
        for table in tables:
            native.drop_triggers(connection, table)
        yield
        for table in tables:
            native.create_triggers(connection, table)


class History(Library):
    """sqlalchemy-history, from the package index."""

    name = "history"
    environment = "history"
    package = "sqlalchemy_history"
    scale = {"W11": 0.1, "W14": 0.03}


class Continuum(Library):
    """SQLAlchemy-Continuum, from the package index."""

    name = "continuum"
    environment = "continuum"
    package = "sqlalchemy_continuum"
    scale = {"W11": 0.1}


@contextmanager
def as_replica(connection: Connection) -> Iterator[None]:
    """PostgreSQL's triggers are off."""
    connection.execute(text("SET session_replication_role = replica"))
    yield
    connection.execute(text("SET session_replication_role = origin"))


class ContinuumNative(Continuum):
    """SQLAlchemy-Continuum with its triggers."""

    name = "continuum-native"
    options: Mapping[str, Any] = {"native_versioning": True}
    databases = frozenset({"postgresql"})
    skips = NOT_OF_TRIGGERS

    def unseen(self, connection: Connection) -> AbstractContextManager[None]:
        return as_replica(connection)


class PostgreSQLAudit(Contender):
    """PostgreSQL-Audit: triggers write one table of JSON documents."""

    name = "postgresql-audit"
    environment = "postgresql-audit"
    versioned = True
    databases = frozenset({"postgresql"})
    same_tables = False
    skips = NOT_OF_TRIGGERS - {"W10", "import"}

    def load(self) -> None:
        self.library: Any = importlib.import_module("postgresql_audit")

    def new_base(self) -> type[DeclarativeBase]:
        base = super().new_base()
        self.load()
        manager: Any = self.library.VersioningManager()
        manager.init(base)
        return base

    def create_tables(self, metadata: MetaData, engine: Engine) -> None:
        # the functions that the other tables need are created after these
        metadata.create_all(engine, [metadata.tables[name] for name in ("transaction", "activity")])
        metadata.create_all(engine)

    def unseen(self, connection: Connection) -> AbstractContextManager[None]:
        return as_replica(connection)

    def other_rows(self, connection: Connection) -> Mapping[str, Mapping[str, int]]:
        counted = text(
            "SELECT table_name, verb, count(*) FROM activity "
            "WHERE verb = 'delete' OR changed_data <> '{}' GROUP BY table_name, verb"
        )
        found: dict[str, dict[str, int]] = {}
        for table, verb, count in connection.execute(counted):
            found.setdefault(table, {})[verb] = count
        return found


class Recipe(Contender):
    """The idea of the ``versioned_history`` recipe of SQLAlchemy's documentation, done anew.

    Before a flush, each changed or deleted object adds an object of a history class, which holds
    its former values and version number; the live row counts its versions. Nothing says which
    changes belong together, and association rows have no history.
    """

    name = "recipe"
    same_tables = False
    skips = frozenset({"W9", "W10", "import", "R1", "R2", "R3", "R4", "R5"})

    def after_models(self, base: type[DeclarativeBase]) -> None:
        self._history = {mapper.class_: self._mapped(mapper) for mapper in base.registry.mappers}
        event.listen(Session, "before_flush", self._before_flush)

    def _mapped(self, mapper: Mapper[Any]) -> type[Any]:
        """The history class of a mapper; its table gets the column ``version``."""
        live: Any = mapper.local_table
        number = Column("version", Integer, server_default="1", nullable=False)
        live.append_column(number)
        mapper.add_property("version", number)
        columns = [
            Column(column.name, column.type, primary_key=column.primary_key, autoincrement=False)
            for column in live.columns
            if column.name != "version"
        ]
        columns.append(Column("version", Integer, primary_key=True, autoincrement=False))
        columns.append(Column("changed", DateTime, default=dt.datetime.now))
        table = Table(f"{live.name}_history", live.metadata, *columns)
        made = type(f"{mapper.class_.__name__}History", (), {})
        mapper.registry.map_imperatively(made, table)
        return made

    def _before_flush(self, session: Session, flush_context: Any, instances: Any) -> None:
        for instance in list(session.dirty):
            self._keep(session, instance, deleted=False)
        for instance in list(session.deleted):
            self._keep(session, instance, deleted=True)

    def _keep(self, session: Session, instance: Any, *, deleted: bool) -> None:
        history = self._history.get(type(instance))
        if history is None:
            return
        values, changed = {}, deleted
        for prop in object_mapper(instance).column_attrs:
            added, unchanged, removed = attributes.get_history(instance, prop.key)
            changed = changed or bool(added or removed)
            values[prop.key] = (removed or unchanged or added or [None])[0]
        if not changed:
            return
        former = history()
        for key, value in values.items():
            setattr(former, key, value)
        session.add(former)
        if not deleted:
            instance.version = former.version + 1


CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender
    for contender in (
        Contender,
        Handwritten,
        Floor,
        Recipe,
        Ours,
        OursNative,
        History,
        Continuum,
        ContinuumNative,
        PostgreSQLAudit,
    )
}


def valid(columns: Any, transaction: int) -> tuple[Any, ...]:
    """The conditions under which a version is the live row at *transaction*."""
    end = columns.end_transaction_id
    return (
        columns.transaction_id <= transaction,
        or_(end.is_(None), end > transaction),
        columns.operation_type != DELETE,
    )
