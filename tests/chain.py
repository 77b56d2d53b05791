"""What must hold for every history, whatever made it; and histories in a form to compare.

`laws` is an autouse fixture for modules that import it: after each test, every history in the
database of `engine` is checked. Nothing here knows how the package works inside; the version
tables are read with plain SQL.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

import support
from sqlalchemy_history import TableNotVersioned, version_table
from sqlalchemy_history.plan import table_plan

INSERT, UPDATE, DELETE = 0, 1, 2
_OWN = ("transaction_id", "end_transaction_id", "operation_type")

#: every backend, and both strategies on SQLite: for laws in which the two do not meet
EACH_ONCE = pytest.mark.parametrize(
    ("backend", "strategy"),
    [
        (backend, strategy)
        for backend in support.selected_backends()
        for strategy in ("validity", "subquery")
        if strategy == "validity" or backend == "sqlite"
    ],
    indirect=True,
)


def _table(entity: Any) -> sa.Table:
    return entity if isinstance(entity, sa.Table) else sa.inspect(entity).local_table


def history(bind: Any, entity: Any, *names: str) -> list[tuple[Any, ...]]:
    """`(transaction, operation, value, ...)` of all versions of a class or table, in order.

    Transactions are numbered 1, 2, ... in the order of their ids; the default for `names` is all
    columns but those of versioning. Read in the transaction of `bind`: a session, connection or
    engine.
    """
    if isinstance(bind, Engine):
        with bind.connect() as connection:
            return history(connection, entity, *names)
    if not isinstance(bind, Connection):
        bind = bind.connection(bind_arguments={"clause": _table(entity)})
    version = version_table(_table(entity))
    columns = [version.c[name] for name in names] or [c for c in version.c if c.key not in _OWN]
    start = version.c.transaction_id
    keys = [c for c in version.primary_key if c is not start]
    rows = bind.execute(
        sa.select(start, version.c.operation_type, *columns).order_by(start, *keys)
    ).all()
    transaction = table_plan(version).transaction
    ids = sorted(bind.scalars(sa.select(transaction.c.id)))
    numbers = {id_: number for number, id_ in enumerate(ids, 1)}
    return [(numbers[row[0]], *row[1:]) for row in rows]


def count_transactions(bind: Any, entity: Any) -> int:
    """How many rows there are in the transaction table."""
    transaction = version_table(_table(entity)).metadata.tables["transaction"]
    if isinstance(bind, Engine):
        with bind.connect() as connection:
            return count_transactions(connection, entity)
    return bind.scalar(sa.select(sa.func.count()).select_from(transaction))


def check_histories(connection: Connection, metadata: sa.MetaData, laws: Laws) -> None:
    """Assert the laws for every versioned table of `metadata` that exists."""
    existing: dict[str | None, set[str]] = {}
    used: set[int] = set()
    for table in list(metadata.tables.values()):
        try:
            version = version_table(table)
        except TableNotVersioned:
            continue
        if version is table:
            continue
        if table.schema not in existing:
            schemas = sa.inspect(connection).get_schema_names()
            there = table.schema is None or table.schema in schemas
            names = sa.inspect(connection).get_table_names(table.schema) if there else ()
            existing[table.schema] = set(names)
        if table.name in existing[table.schema]:
            used |= _check_table(connection, table, version, laws)
    transaction = metadata.tables.get("transaction")
    if transaction is not None:
        schema = existing.get(transaction.schema) or set()
        if transaction.name in schema:
            known = set(connection.scalars(sa.select(transaction.c.id)))
            assert used <= known, f"versions of no transaction: {used - known}"
            assert not laws.whole or used == known, f"transactions without versions: {known - used}"


def _check_table(
    connection: Connection, table: sa.Table, version: sa.Table, laws: Laws
) -> set[int]:
    start = version.c.transaction_id
    keys = [c for c in version.primary_key if c is not start]
    values = [c for c in version.c if c.key not in _OWN]
    chains: dict[Any, list[Any]] = defaultdict(list)
    rows = connection.execute(sa.select(version).order_by(start)).mappings().all()
    for row in rows:
        chains[_plain(row[c] for c in keys)].append(row)
    live = {
        _plain(row[table.c[c.key]] for c in keys): row
        for row in connection.execute(sa.select(table)).mappings()
    }
    for key, chain in chains.items():
        what = f"{table.fullname} {key}: {[tuple(row.values()) for row in chain]}"
        if "end_transaction_id" in version.c:
            ends = [row[version.c.end_transaction_id] for row in chain]
            starts = [row[start] for row in chain]
            assert ends == [*starts[1:], None], f"the chain does not touch: {what}"
        operations = [row[version.c.operation_type] for row in chain]
        for before, now in pairwise(operations):
            assert (before == DELETE) == (now == INSERT), f"operations out of order: {what}"
        assert not laws.whole or operations[0] == INSERT, f"no INSERT at first: {what}"
        last, now = chain[-1], live.get(key)
        if operations[-1] == DELETE:
            assert now is None, f"DELETE, but the row is there: {what}"
        else:
            assert now is not None, f"the row is gone: {what}"
            live_values = _plain(now[table.c[c.key]] for c in values)
            assert _plain(last[c] for c in values) == live_values, (
                f"the open version is not the live row {live_values}: {what}"
            )
        if not laws.repeats:
            for one, two in pairwise(chain):
                if two[version.c.operation_type] == UPDATE:
                    same = _plain(one[c] for c in values) == _plain(two[c] for c in values)
                    assert not same, f"a version without a change: {what}"
    missing = live.keys() - chains.keys()
    assert not laws.whole or not missing, f"{table.fullname}: live rows without history: {missing}"
    return {row[start] for row in rows}


def _plain(values: Any) -> tuple[Any, ...]:
    """Values that can be compared and hashed."""
    return tuple(repr(v) if isinstance(v, (list, dict, set, bytearray)) else v for v in values)


@dataclasses.dataclass
class Laws:
    """Which laws hold in a test.

    :ivar whole: histories start with an INSERT, live rows have one, no transaction row is empty.
    :ivar repeats: a version may be equal to the one before it: another table of a joined hierarchy
        changed.
    """

    whole: bool = True
    repeats: bool = False


@pytest.fixture(autouse=True)
def laws(request: pytest.FixtureRequest) -> Iterator[Laws]:
    """After the test, check every history in the database of `engine`."""
    found = Laws()
    if not {"engine", "versioning"} <= set(request.fixturenames):
        yield found
        return
    engine = request.getfixturevalue("engine")
    request.getfixturevalue("versioning")
    bases = request.getfixturevalue("make_base")
    yield found
    with engine.connect() as connection:
        for base in bases._made:
            check_histories(connection, base.metadata, found)
