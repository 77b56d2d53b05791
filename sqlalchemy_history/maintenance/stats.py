"""How much history there is."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Connection, Table, func, inspect, select, text
from sqlalchemy.orm import Session, object_session

from sqlalchemy_history import query
from sqlalchemy_history.plan import Key, TablePlan, as_key
from sqlalchemy_history.query import plan_of

from .prune import equal_versions
from .upkeep import Upkeep


def count_versions(obj: Any) -> int:
    """The number of versions of a live object or of the object of a version: one query.

    An object that is in no session, or was never saved, has none that could be asked for: 0.

    :raises ClassNotVersioned: if the class has no history.
    """
    plan = plan_of(obj)
    session = object_session(obj)
    identity = inspect(obj).identity
    if session is None or identity is None:
        return 0
    cls: Any = plan.version_class
    key = plan.key_of_object(obj)
    statement = select(func.count()).select_from(cls).where(query.has_key(plan, key))
    return session.scalar(statement) or 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HistoryStats:
    """The size of the history of one table.

    :ivar table: the name of the live table.
    :ivar rows: how many live rows there are.
    :ivar objects: how many objects have versions, deleted ones included.
    :ivar versions: how many versions there are.
    :ivar bytes: what the version table and its indexes take on disk; None where the database does
        not tell.
    :ivar waste: how many versions say the same as the one before, so that ``vacuum()`` would remove
        them.
    :ivar hottest: (key, number of versions) of the objects with most versions.
    """

    table: str
    rows: int
    objects: int
    versions: int
    bytes: int | None
    waste: int
    hottest: tuple[tuple[Key, int], ...]


def stats(session: Session, model: Any, *, hottest: int = 5) -> list[HistoryStats]:
    """The size of the history of ``model``, its association tables included.

    :param hottest: how many of the objects with most versions are listed.
    :raises ClassNotVersioned: if the class has no history.
    """
    work = Upkeep(session, model, "stats")
    return [_stats_of(work, root, hottest) for root in work.roots]


def _stats_of(work: Upkeep, root: TablePlan, hottest: int) -> HistoryStats:
    connection = work.connection
    v = root.version
    keys = root.keys_of(v)
    per_object = select(*keys, func.count().label("history_count")).group_by(*keys)
    counted = per_object.subquery()
    objects, versions = connection.execute(
        select(func.count(), func.coalesce(func.sum(counted.c.history_count), 0)).select_from(
            counted
        )
    ).one()
    rows = connection.execute(per_object.order_by(func.count().desc(), *keys).limit(hottest)).all()
    equal, _ = equal_versions(work, root)
    sizes = [_bytes(connection, part.version) for part in root.hierarchy]
    return HistoryStats(
        table=root.parent.fullname,
        rows=connection.scalar(
            select(func.count()).select_from(root.parent).where(work.recorded_rows(root))
        )
        or 0,
        objects=objects,
        versions=int(versions),
        bytes=None if None in sizes else sum(size for size in sizes if size is not None),
        waste=connection.scalar(select(func.count()).select_from(equal.subquery())) or 0,
        hottest=tuple((as_key(row[:-1]), row[-1]) for row in rows),
    )


def _bytes(connection: Connection, table: Table) -> int | None:
    """What ``table`` and its indexes take; in SQLite only a build with ``dbstat`` knows."""
    kind = connection.dialect.name
    quoted = connection.dialect.identifier_preparer.format_table(table)
    if kind == "postgresql":
        size = connection.scalar(select(func.pg_total_relation_size(quoted)))
    elif kind in ("mysql", "mariadb"):
        size = connection.scalar(
            text(
                "SELECT data_length + index_length FROM information_schema.tables "
                "WHERE table_schema = coalesce(:schema, database()) AND table_name = :name"
            ),
            {"schema": table.schema, "name": table.name},
        )
    elif kind == "sqlite" and connection.scalar(
        text("SELECT count(*) FROM pragma_module_list WHERE name = 'dbstat'")
    ):
        size = connection.scalar(
            text(
                "SELECT sum(pgsize) FROM dbstat WHERE name = :name OR name IN "
                "(SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = :name)"
            ),
            {"name": table.name},
        )
    else:
        size = None
    return None if size is None else int(size)
