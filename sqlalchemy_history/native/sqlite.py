"""SQLite: triggers called for each row, whose statements are told apart by their WHERE alone.

SQLite's triggers know neither variables nor which transaction they run in. A table of one row beside
the transaction table says which transaction row is in use. A session marks it before it writes and
clears it before it commits; since only one connection writes at a time, nobody else ever sees the
mark. Without a mark a transaction row is used for what one statement writes: it is told by the
clock, which stands still while a statement runs. As two statements may fall into one millisecond,
a row that has a version of that transaction already gets another transaction row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    case,
    column,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import (
    table as a_table,
)
from sqlalchemy.schema import CreateTable, DropTable

from sqlalchemy_history.exc import ImproperlyConfigured
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import TablePlan
from sqlalchemy_history.schema import plain_type
from sqlalchemy_history.write import TransactionRow, Writer

from .program import TAKE_BACK, Program, Step, TriggerRow, with_tx
from .render import Renderer, TriggerDDL, given_columns

#: no transaction is overtaken: one writes at a time
MOVES = True
#: what there is a trigger for; see ``_trigger()``
_EVENTS = ("insert", "first", "update", "move", "delete")

#: the clock as ``issued_at`` is stored; it stands still while a statement runs
_NOW = literal_column("strftime('%Y-%m-%d %H:%M:%f000', 'now')", Text())


def current_table(transaction: Table) -> Table:
    """The table whose one row says which row of ``transaction`` is in use.

    It has the columns of ``transaction``, which hold what the session's context says.
    """
    return Table(
        f"{transaction.name}_current",
        MetaData(),
        Column("history__tx", Integer),
        Column("history__at", Text),
        Column("history__is_marked", Boolean, nullable=False),
        Column("history__is_less", Boolean, nullable=False),
        *(
            Column(c.name, plain_type(c.type), key=c.key)
            for c in transaction.c
            if c is not transaction.c.id
        ),
        schema=transaction.schema,
    )


_NOTHING = {
    "history__tx": None,
    "history__at": None,
    "history__is_marked": False,
    "history__is_less": False,
}


def create_shared(connection: Any, transaction: Table, plans: Iterable[TablePlan]) -> Iterator[Any]:
    """The table that says which transaction row is in use."""
    current = current_table(transaction)
    yield from drop_shared(transaction)
    yield CreateTable(current)
    yield insert(current).values(_NOTHING)


def drop_shared(transaction: Table) -> Iterator[Any]:
    """Drop what ``create_shared()`` made."""
    yield DropTable(current_table(transaction), if_exists=True)


def create(connection: Any, plan: TablePlan) -> Iterator[TriggerDDL]:
    """The triggers of one table, in place of those that it has.

    :raises ImproperlyConfigured: if the history is in another database file.
    """
    if len({plan.parent.schema, plan.version.schema, plan.transaction.schema}) > 1:
        raise ImproperlyConfigured(
            f"table {plan.parent.fullname!r}: native_versioning=True: a trigger of SQLite writes "
            f"only to the database that it is in, and the table's history is in another one; "
            f"leave the option out for this table, and sessions record"
        )
    yield from drop(plan)
    for event in _EVENTS:
        yield TriggerDDL(partial(_trigger, plan, event))


def drop(plan: TablePlan) -> Iterator[TriggerDDL]:
    """Drop the triggers of one table."""
    for event in _EVENTS:
        yield TriggerDDL(partial(_drop_trigger, plan, event))


def installed(connection: Connection, plan: TablePlan) -> list[str]:
    """The triggers of one table in this database; nothing if one is missing."""
    master = a_table(
        "sqlite_master", column("type"), column("name"), column("sql"), schema=plan.parent.schema
    )
    names = [f"history_{event}_{plan.parent.name}" for event in _EVENTS]
    found = connection.scalars(
        select(master.c.sql).where(master.c.type == "trigger", master.c.name.in_(names))
    ).all()
    # what is stored starts with the name; the schema is left out of it
    bodies = [sql[sql.index(" AFTER ") :] for sql in found]
    return bodies if len(bodies) == len(names) else []


def _drop_trigger(plan: TablePlan, event: str, r: Renderer) -> str:
    return f"DROP TRIGGER IF EXISTS {_name(r, plan, event)}"


def _name(r: Renderer, plan: TablePlan, event: str) -> str:
    return r.name(f"history_{event}_{plan.parent.name}", plan.parent)


def _trigger(plan: TablePlan, event: str, outer: Renderer) -> str:
    """CREATE TRIGGER.

    The event ``first`` is an INSERT after which a trigger of the user's has changed the row: SQLite
    may have called us for that UPDATE first, and we took it for one of a row without history.
    """
    r = outer.without_schemas()
    program = Program(plan, Writer(r.dialect))
    new, old = (TriggerRow(name, plan.parent, r.dialect, plan.keys) for name in ("NEW", "OLD"))
    on = {"first": "INSERT", "move": "UPDATE"}.get(event, event.upper())
    head = (
        f"CREATE TRIGGER {_name(outer, plan, event)} AFTER {on} ON {r.table(plan.parent)} "
        f"FOR EACH ROW WHEN "
    )
    if event == "first":
        is_wrong = program.is_wrong_update(new)
        right = update(plan.version).where(is_wrong).values({plan.op: Operation.INSERT})
        return f"{head}{r.sql(exists().where(is_wrong))}\nBEGIN\n  {r.sql(right)};\nEND"
    when, steps, row = {
        "insert": lambda: (program.is_news(new), program.writing(new, None), new),
        "update": lambda: (program.is_news(new), program.writing(new, old), new),
        "move": lambda: (program.are_gone(old), program.leaving(old), old),
        "delete": lambda: (program.are_gone(old), program.leaving(old), old),
    }[event]()
    current = current_table(plan.transaction)
    tx = literal_column(f"(SELECT history__tx FROM {r.table(current)})", Integer())
    body = [
        *_beginning(r, plan, row, current),
        *(text for step in steps for text in _step(r, step, tx, current)),
    ]
    statements = "".join(f"  {statement};\n" for statement in body)
    return f"{head}{r.sql(when)}\nBEGIN\n{statements}END"


def _beginning(r: Renderer, plan: TablePlan, row: TriggerRow, current: Table) -> Iterator[str]:
    """Have a transaction row."""
    transaction, v = plan.transaction, plan.version
    own = select(v).where(row.holds(plan.keys_of(v)), plan.tx_of(v) == current.c.history__tx)
    there = select(transaction.c.id).where(transaction.c.id == current.c.history__tx)
    now = current.c.history__at == _NOW
    usable = there.exists() & or_(current.c.history__is_marked, now & ~own.exists())
    yield r.sql(update(current).where(~usable).values(history__tx=None, history__at=_NOW))
    columns, given = given_columns(transaction)
    values = [
        func.coalesce(current.c[c.key], _NOW) if c.key == "issued_at" else current.c[c.key]
        for c in columns
    ]
    copy = select(*values).where(current.c.history__tx.is_(None))
    yield r.sql(insert(transaction).from_select([c.key for c in columns], copy, False))
    begun = update(current).where(current.c.history__tx.is_(None))
    yield r.sql(begun.values(history__tx=func.last_insert_rowid()))
    for c in given:
        said = select(current.c[c.key]).scalar_subquery()
        tx = select(current.c.history__tx).scalar_subquery()
        filled = update(transaction).where(transaction.c.id == tx, said.is_not(None))
        yield r.sql(filled.values({c: said}))


def _step(r: Renderer, step: Step, tx: ColumnElement[Any], current: Table) -> Iterator[str]:
    yield r.sql(with_tx(step.statement, tx))
    if step.kind == TAKE_BACK:
        yield r.sql(update(current).where(func.changes() > 0).values(history__is_less=True))


# -- what a session says


def tell(connection: Connection, transaction: Table, row: TransactionRow, *, anew: bool) -> None:
    """Mark the transaction that is under way, and say what its transaction row shall hold."""
    if _is_autocommit(connection):
        return
    current = current_table(transaction)
    known = case((current.c.history__is_marked, current.c.history__tx))
    values = {**_NOTHING, "history__tx": None if anew else known, "history__is_marked": True}
    if not anew:
        del values["history__is_less"]
    connection.execute(update(current).values({**values, **row}))


def known(connection: Connection, transaction: Table) -> int | None:
    """The id of the row of the transaction that is under way."""
    current = current_table(transaction)
    return connection.scalar(select(current.c.history__tx).where(current.c.history__is_marked))


def adopt(connection: Connection, transaction: Table, tx: int | None, *, keep: bool) -> None:
    """Let the triggers use the transaction row ``tx``."""
    if not _is_autocommit(connection):
        connection.execute(update(current_table(transaction)).values(history__tx=tx))


def finish(connection: Connection, transaction: Table) -> int | None:
    """The transaction is about to end; its id, if triggers have taken versions back."""
    current = current_table(transaction)
    less = connection.scalar(
        select(current.c.history__tx).where(
            current.c.history__is_marked, current.c.history__is_less
        )
    )
    nothing = dict.fromkeys((c.key for c in current.c), None)
    connection.execute(update(current).values({**nothing, **_NOTHING}))
    return less


def _is_autocommit(connection: Connection) -> bool:
    """Each statement is committed at once, and what is marked would be seen by others."""
    driver: Any = connection.connection.driver_connection
    manual = driver.isolation_level is None or getattr(driver, "autocommit", None) is True
    return manual and not driver.in_transaction


def forget(connection: Connection, transaction: Table) -> None:
    """The mark goes with all else that the transaction has written."""
