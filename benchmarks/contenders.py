"""Who is measured: one small adapter each.

A contender is told when the models are about to be declared and when they are, and it commits the
work. To add one: a subclass here, an entry in :data:`CONTENDERS`, its name in
``__main__.CONTENDERS`` and, if it needs packages, an environment in :mod:`benchmarks.environments`.
No library is imported before :meth:`Contender.load`.
"""

from __future__ import annotations

import datetime as dt
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Session

INSERT, UPDATE, DELETE = 0, 1, 2


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

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy

    def load(self) -> None:
        """Import the library."""

    def before_models(self) -> None:
        """Switch versioning on."""

    def after_models(self, base: type[DeclarativeBase]) -> None:
        """Called when the models are declared and configured."""

    def flush(
        self,
        session: Session,
        *,
        inserted: Sequence[Any] = (),
        updated: Sequence[Any] = (),
        deleted: Sequence[Any] = (),
        linked: tuple[Table, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Flush; the arguments say what changed, for those who have to be told."""
        session.flush()

    def commit(self, session: Session, **changes: Any) -> None:
        """Commit; *changes* as for :meth:`flush`."""
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

    def flush(
        self,
        session: Session,
        *,
        inserted: Sequence[Any] = (),
        updated: Sequence[Any] = (),
        deleted: Sequence[Any] = (),
        linked: tuple[Table, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        session.flush()
        rows: dict[Table, list[dict[str, Any]]] = {}
        closes: dict[Table, list[dict[str, Any]]] = {}
        tx = self._begin(session)
        for operation, objects in ((INSERT, inserted), (UPDATE, updated), (DELETE, deleted)):
            for instance in objects:
                table = instance.__table__
                values = instance.__dict__
                row = {name: values[name] for name in self.names[table]}
                row["transaction_id"] = tx
                row["operation_type"] = operation
                rows.setdefault(table, []).append(row)
                if operation != INSERT:
                    closes.setdefault(table, []).append({"key_id": values["id"], "tx": tx})
        if linked is not None:
            table, links = linked
            rows[table] = [{**link, "transaction_id": tx, "operation_type": 0} for link in links]
        if self.strategy == "validity":
            for table, keys in closes.items():
                session.execute(self.closes[table], keys)
        for table, versions in rows.items():
            session.execute(self.inserts[table], versions)

    def commit(self, session: Session, **changes: Any) -> None:
        self.flush(session, **changes)
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


class Library(Contender):
    """A library with the surface of sqlalchemy-history and Continuum."""

    versioned = True
    skips = frozenset()
    package: str

    def load(self) -> None:
        self.library: Any = importlib.import_module(self.package)

    def before_models(self) -> None:
        self.load()
        self.library.make_versioned(user_cls=None, options={"strategy": self.strategy})

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
        return (orm.selectinload(collection),)

    def as_of(self, model: Any, transaction: int) -> Any:
        return self.library.as_of(model, transaction)


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


CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender for contender in (Contender, Handwritten, Ours, History, Continuum)
}


def valid(columns: Any, transaction: int) -> tuple[Any, ...]:
    """The conditions under which a version is the live row at *transaction*."""
    end = columns.end_transaction_id
    return (
        columns.transaction_id <= transaction,
        or_(end.is_(None), end > transaction),
        columns.operation_type != DELETE,
    )
