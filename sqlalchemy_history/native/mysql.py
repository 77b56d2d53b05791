"""MariaDB: triggers called for each row, which know the transaction's row by a user variable.

A user variable lasts as long as the connection, so a session sets a mark before it writes and clears
it when its transaction ends. Without a mark a transaction row is used for what one statement writes,
which is told by ``NOW(6)``: it stands still while a statement runs. A row that has a version of that
transaction already gets another transaction row.

InnoDB locks the gap in which it finds nothing, and two transactions that have locked a gap cannot
insert there. So what may not be there is asked for without locks first, and what is there with
locks: a plain read shows what was there when the transaction began. InnoDB calls no triggers for what
foreign keys cascade; those of the table on which the cascade begins record it beforehand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    column,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
)
from sqlalchemy import (
    table as a_table,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import ForUpdateArg

from sqlalchemy_history.exc import ImproperlyConfigured
from sqlalchemy_history.plan import TablePlan
from sqlalchemy_history.references import Cascades, Reference, references
from sqlalchemy_history.write import TransactionRow, Writer

from .program import CLOSE, OPEN, TAKE_BACK, Program, Step, TriggerRow, with_tx
from .render import Renderer, TriggerDDL, given_columns, short_name

#: a transaction that was overtaken goes on under another id; what it has written keeps the old one
MOVES = False
_LIMIT = 64
_EVENTS = ("insert", "update", "delete")
#: MariaDB would rather read, and lock, a whole table than look one row up for each
_FOR_EACH = "SET STATEMENT optimizer_switch='exists_to_in=off' FOR "
_ZERO = literal_column("0", BigInteger())
_ONE = select(literal_column("1").label("one")).subquery("history__one")
_TX = literal_column("history__tx", BigInteger())
#: what a session says beside the values of columns
_OWN = ("history__is_marked", "history__tx", "history__at", "history__is_less")


def create_shared(
    connection: Any, transaction: Table, plans: Iterable[TablePlan]
) -> Iterator[TriggerDDL]:
    """Nothing: the triggers share variables of the connection."""
    yield from ()


def drop_shared(transaction: Table) -> Iterator[TriggerDDL]:
    """Nothing."""
    yield from ()


def create(connection: Any, plan: TablePlan) -> Iterator[TriggerDDL]:
    """The triggers of one table, in place of those that it has, and of those that cascade to it.

    :raises ImproperlyConfigured: if the database is MySQL, or for a cascade that leads in a circle.
    """
    if getattr(connection.dialect, "is_mariadb", True) is False:
        raise ImproperlyConfigured(
            f"table {plan.parent.fullname!r}: native_versioning=True: there are triggers for "
            f"MariaDB, but not for MySQL, which cannot change a table by what it reads from it. "
            f"Leave the option out, and sessions record"
        )
    for event in _EVENTS:
        yield TriggerDDL(partial(_trigger, plan, event))
    for cascades, table, event in _cascading(plan):
        yield TriggerDDL(partial(_create_before, plan, cascades, table, event))


def drop(plan: TablePlan) -> Iterator[TriggerDDL]:
    """Drop the triggers of one table; cascades to it are not recorded any more."""
    for event in _EVENTS:
        yield TriggerDDL(partial(_drop_trigger, plan.parent, event))
    for _, table, event in _cascading(plan):
        yield TriggerDDL(partial(_drop_before, plan, table, event))


def installed(connection: Connection, plan: TablePlan) -> list[str]:
    """What the triggers of one table do in this database; nothing if one is missing."""
    translate = connection.get_execution_options().get("schema_translate_map") or {}
    names = "event_object_schema", "event_object_table", "trigger_name", "action_statement"
    listed = a_table("triggers", *map(column, names), schema="information_schema")
    wanted = {plan.parent: {_trigger_name(plan.parent, event) for event in _EVENTS}}
    for _, table, event in _cascading(plan):
        wanted.setdefault(table, set()).add(_before_name(plan, table, event))
    found = []
    for table, its in wanted.items():
        # by schema and table: for any other condition the server opens every table that it has
        there = select(listed.c.action_statement).where(
            listed.c.event_object_schema
            == (translate.get(table.schema, table.schema) or func.database()),
            listed.c.event_object_table == table.name,
            listed.c.trigger_name.in_(its),
        )
        found.append(connection.scalars(there.order_by(listed.c.trigger_name)).all())
    complete = [len(there) == len(its) for there, its in zip(found, wanted.values(), strict=True)]
    return [sql for there in found for sql in there] if all(complete) else []


def _trigger_name(table: Table, event: str) -> str:
    return short_name(f"history_{event}_{table.name}", _LIMIT)


def _drop_trigger(table: Table, event: str, r: Renderer) -> str:
    return f"DROP TRIGGER IF EXISTS {_name(r, table, event)}"


def _name(r: Renderer, table: Table, event: str) -> str:
    return r.name(_trigger_name(table, event), table)


# -- one row


def _inside(r: Renderer, table: Table) -> Renderer:
    """For the body of a trigger, in which names without a schema are looked up beside ``table``."""
    return r.qualified() if r.schema(table) else r


def _trigger(plan: TablePlan, event: str, r: Renderer) -> str:
    r = _inside(r, plan.parent)
    program = Program(plan, Writer(r.dialect))
    new, old = (TriggerRow(name, plan.parent, r.dialect, plan.keys) for name in ("NEW", "OLD"))
    keys = [(new.value(c), old.value(c)) for c, _ in plan.keys]
    moved = r.sql(or_(*(a.is_distinct_from(b) for a, b in keys)))
    parts = []
    is_news = r.sql(_locking(program.is_news(new)))
    if event == "insert":
        parts += [
            f"{_ask(r, 'history__is_own', new, plan, plan.version)}"
            f"IF history__is_own THEN SET history__is_own = NOT ({is_news}); END IF;\n"
            f"IF NOT history__is_own THEN\n"
            + _part(r, program, new, program.writing(new, None), known=None)
            + "END IF;\n"
        ]
    elif event == "delete":
        parts.append(_part(r, program, old, program.leaving(old), known=True))
    else:
        parts += [
            f"IF {moved} THEN\n"
            + _part(r, program, old, program.leaving(old), known=True)
            + "END IF;\n",
            f"IF {is_news} THEN\n"
            + _part(r, program, new, program.writing(new, old), known=f"NOT ({moved})")
            + "END IF;\n",
        ]
    return (
        f"CREATE OR REPLACE TRIGGER {_name(r, plan.parent, event)} AFTER {event.upper()} "
        f"ON {r.table(plan.parent)} FOR EACH ROW\n{_block(plan, parts)}"
    )


def _block(plan: TablePlan, parts: Iterable[str]) -> str:
    flags = "".join(
        f"DECLARE history__has_{i}, history__is_there_{i} BOOL DEFAULT TRUE;\n"
        for i, _ in enumerate(plan.hierarchy)
    )
    return (
        "BEGIN\nDECLARE history__tx, history__newest, history__old BIGINT;\n"
        "DECLARE history__is_own BOOL;\n"
        f"{flags}{''.join(parts)}END"
    )


def _part(
    r: Renderer, program: Program, row: TriggerRow, steps: Iterable[Step], known: str | bool | None
) -> str:
    """Record one row.

    :param known: whether it was there before and has versions; an expression where only that tells,
        None of a new row.
    """
    lines = []
    for i, plan in enumerate(program.plan.hierarchy):
        mine = plan is program.plan
        if not mine:
            lines.append(_ask(r, f"history__is_there_{i}", row, plan, plan.parent))
        if not mine or known is not True:
            has = _ask(r, f"history__has_{i}", row, plan, plan.version)
            if mine and known:
                has = (
                    f"SET history__has_{i} = {known};\nIF NOT history__has_{i} THEN\n{has}END IF;\n"
                )
            lines.append(has)
    lines += _beginning(r, program, row)
    lines.append("SET history__is_own = FALSE;\n")
    for plan in program.plan.hierarchy:
        own = _ask(r, "history__is_own", row, plan, plan.version, _TX)
        lines.append(f"IF NOT history__is_own THEN\n{own}END IF;\n")
    number = {plan: i for i, plan in enumerate(program.plan.hierarchy)}
    for step in steps:
        i = number[step.plan]
        statement = _step(r, step.plan, step.kind, row.read(step.statement))
        if step.kind == OPEN:
            if step.fresh is not None:
                fresh = r.sql(with_tx(row.read(step.fresh), _TX))
                statement = f"IF history__has_{i} THEN\n{statement}ELSE\n{fresh};\nEND IF;\n"
            lines.append(f"IF history__is_there_{i} THEN\n{statement}END IF;\n")
        elif step.kind == CLOSE:
            lines.append(f"IF history__has_{i} THEN\n{statement}END IF;\n")
        else:
            lines.append(f"IF history__is_own THEN\n{statement}END IF;\n")
    return "".join(lines)


def _ask(
    r: Renderer,
    variable: str,
    row: TriggerRow,
    plan: TablePlan,
    table: Table,
    tx: ColumnElement[int] | None = None,
) -> str:
    """Set ``variable`` to whether ``table`` has the row, or has it as a version of ``tx``.

    In a trigger InnoDB locks all that is read, and gaps, but for a SELECT statement of its own, of a
    table that is not written under the same name.
    """
    plain = table.alias("history__plain")
    conditions = [row.holds(plan.keys_of(plain))]
    if tx is not None:
        conditions.append(plan.tx_of(plain) == tx)
    return f"SELECT {r.sql(exists().where(*conditions))} INTO {variable};\n"


def _step(r: Renderer, plan: TablePlan, kind: str, statement: Any) -> str:
    if kind == CLOSE:
        # InnoDB locks the next row of an index, too, unless it is joined by the columns it begins with
        start = plan.tx_of(plan.version)
        statement = visitors.replacement_traverse(
            statement, {}, lambda element, **_: start + _ZERO if element is start else None
        ).where(_ONE.c.one == literal_column("1"))
    done = f"{_FOR_EACH}{r.sql(_locking(with_tx(statement, _TX)))};\n"
    if kind == TAKE_BACK:
        less = _variable(r, plan.transaction, "history__is_less")
        done += f"IF ROW_COUNT() > 0 THEN SET {less} = TRUE; END IF;\n"
    return done


def _locking(statement: Any) -> Any:
    """Have all that is read be what is committed now, not when the transaction began."""

    def lock(selected: Any) -> None:
        selected._for_update_arg = ForUpdateArg(read=True)

    return visitors.cloned_traverse(statement, {}, {"select": lock})


def _beginning(r: Renderer, program: Program, row: TriggerRow) -> Iterator[str]:
    """Have a transaction row, and let it be a later one than those of the row's versions."""
    transaction = program.plan.transaction
    t, id_ = r.table(transaction), r.column(transaction.c.id.name)
    marked, tx, at, _ = (_variable(r, transaction, what) for what in _OWN)
    own = _ask(r, "history__is_own", row, program.plan, program.plan.version, _TX)
    says = {c: _variable(r, transaction, c.name) for c in transaction.c}
    columns, given = given_columns(transaction)
    values = [
        f"coalesce({says[c]}, UTC_TIMESTAMP(6))" if c.key == "issued_at" else says[c]
        for c in columns
    ]
    filled = "".join(
        f"UPDATE {t} SET {r.column(c.name)} = {says[c]} "
        f"WHERE {id_} = history__tx AND {says[c]} IS NOT NULL;\n"
        for c in given
    )
    all_columns = [*columns, *given]
    copied = ", ".join(r.column(c.name) for c in all_columns)
    yield (
        f"SELECT max({id_}) INTO history__tx FROM {t} AS history__plain WHERE {id_} = {tx};\n"
        f"{own}"
        f"IF history__tx IS NOT NULL AND {marked} IS NOT TRUE "
        f"AND ({at} IS NULL OR {at} <> NOW(6) OR history__is_own) THEN\n"
        f"SET history__tx = NULL;\nEND IF;\n"
        f"IF history__tx IS NULL THEN\n"
        f"{_insert(r, transaction, columns, 'SELECT ' + ', '.join(values))}{filled}"
        f"SET {tx} = history__tx, {at} = NOW(6);\nEND IF;\n"
    )
    yield "SET history__newest = 0, history__old = history__tx;\n"
    for i, query in enumerate(program.newest(row)):
        newest = f"greatest(history__newest, coalesce({r.sql(_locking(query))}, 0))"
        yield f"IF history__has_{i} THEN\nSET history__newest = {newest};\nEND IF;\n"
    yield (
        f"WHILE history__newest > history__tx DO\n"
        f"DELETE FROM {t} WHERE {id_} = history__tx AND history__tx <> history__old;\n"
        f"{_insert(r, transaction, all_columns, f'SELECT {copied} FROM {t} WHERE {id_} = history__old')}"
        f"SET {tx} = history__tx;\nEND WHILE;\n"
    )


def _insert(r: Renderer, transaction: Table, columns: Sequence[Column[Any]], source: str) -> str:
    """Insert a row into the transaction table and have its id."""
    names = [r.column(c.name) for c in columns]
    into = f"INSERT INTO {r.table(transaction)}"
    sequence: Any = transaction.c.id.default
    if r.dialect.supports_sequences and sequence is not None and sequence.is_sequence:
        id_ = r.column(transaction.c.id.name)
        return (
            f"SET history__tx = {r.sql(sequence.next_value())};\n"
            f"{into} ({', '.join([id_, *names])}) "
            f"{source.replace('SELECT ', 'SELECT history__tx, ', 1)};\n"
        )
    return f"{into} ({', '.join(names)}) {source};\nSET history__tx = LAST_INSERT_ID();\n"


# -- what foreign keys cascade


def _cascading(plan: TablePlan) -> Iterator[tuple[Cascades, Table, str]]:
    """The tables of which a change cascades to the table of ``plan``, and the change."""

    def plan_of(table: Any) -> TablePlan | None:
        return plan if table is plan.parent else None

    cascades = Cascades(plan_of)
    for table in plan.parent.metadata.tables.values():
        for event in ("delete", "update"):
            if cascades.of(table, f"on_{event}"):
                yield cascades, table, event


def _before_name(plan: TablePlan, table: Table, event: str) -> str:
    return short_name(f"history_before_{event}_{table.name}_{plan.parent.name}", _LIMIT)


def _before(r: Renderer, plan: TablePlan, table: Table, event: str) -> str:
    return r.name(_before_name(plan, table, event), table)


def _drop_before(plan: TablePlan, table: Table, event: str, r: Renderer) -> str:
    return f"DROP TRIGGER IF EXISTS {_before(r, plan, table, event)}"


def _create_before(
    plan: TablePlan, cascades: Cascades, table: Table, event: str, r: Renderer
) -> str:
    """CREATE TRIGGER on ``table``, for the rows in the table of ``plan`` that depend on its rows."""
    r = _inside(r, table)
    old, new = (TriggerRow(name, table, r.dialect) for name in ("OLD", "NEW"))
    when, changes = "@@foreign_key_checks", {}
    if event == "update":
        changes = new.c
        columns = {p.key for one in cascades.of(table, "on_update") for _, p in one.pairs}
        moved = (new.c[key].is_distinct_from(old.c[key]) for key in sorted(columns))
        when += f" AND ({r.sql(or_(*moved))})"
    body = "".join(_cascade(cascades, r, table, event, old, changes, ()))
    return (
        f"CREATE OR REPLACE TRIGGER {_before(r, plan, table, event)} BEFORE {event.upper()} "
        f"ON {r.table(table)} FOR EACH ROW\nBEGIN\nIF {when} THEN\n{body}END IF;\nEND"
    )


def _cascade(
    cascades: Cascades,
    r: Renderer,
    table: Table,
    event: str,
    parent: TriggerRow,
    new: Mapping[str, ColumnElement[Any]],
    path: tuple[Table, ...],
) -> Iterator[str]:
    """Record what happens to the dependants of a row of ``table``.

    :param new: what columns of the row will hold, as far as that changes.
    """
    for reference in cascades.of(table, f"on_{event}"):
        child, action = reference.child, getattr(reference, f"on_{event}")
        if child is table and path:
            continue  # the rows of a tree are read all at once
        if child in path:
            raise ImproperlyConfigured(
                f"table {child.fullname!r}: native_versioning=True: foreign keys cascade from it "
                f"over other tables back to it, and MariaDB calls no triggers for that; leave the "
                f"option out for it, and sessions record"
            )
        changes = {
            c.key: literal_column("NULL", c.type) if action != "CASCADE" else new[p.key]
            for c, p in reference.pairs
            if action != "CASCADE" or p.key in new
        }
        name = f"history__row_{len(path)}"
        plan = cascades.plan_of(child)
        keys = () if plan is None else plan.keys
        row = TriggerRow(name, child, r.dialect, keys)
        yield f"FOR {name} IN ({r.sql(_dependants(reference, event, parent))}) DO\n"
        if plan is not None:
            program = Program(plan, Writer(r.dialect))
            after = TriggerRow(name, child, r.dialect, keys, changes)
            moves = any(c.key in changes for c, _ in keys)
            parts = []
            if moves or not changes:
                steps = program.leaving(row, all_of_them=True)
                parts.append(_part(r, program, row, steps, known=True))
            if changes:
                steps = program.writing(after, None if moves else row)
                parts.append(_part(r, program, after, steps, known=None if moves else True))
            yield f"{_block(plan, parts)};\n"
        if action == "CASCADE":
            yield from _cascade(cascades, r, child, event, row, changes, (*path, child))
        yield "END FOR;\n"


def _dependants(reference: Reference, event: str, parent: TriggerRow) -> Select[Any]:
    """The rows that refer to ``parent``; of a tree, all that are below it."""
    live = reference.child.alias()
    below = select(live).where(*(live.c[c.key] == parent.c[p.key] for c, p in reference.pairs))
    for other in references(reference.child, f"on_{event}"):
        if other.child is reference.child and getattr(other, f"on_{event}") == "CASCADE":
            # in a recursive query there are no locks
            tree, next_ = below.cte(recursive=True), reference.child.alias()
            pairs = (next_.c[c.key] == tree.c[p.key] for c, p in other.pairs)
            return select(tree.union(select(next_).where(*pairs)))
    locked: Select[Any] = _locking(below)
    return locked


# -- what a session says


def _variable(r: Renderer, transaction: Table, what: str) -> str:
    name = _variable_name(transaction, what)
    return name.replace("%", "%%") if r.dialect.identifier_preparer._double_percents else name


def _variable_name(transaction: Table, what: str) -> str:
    name = short_name(f"history.{transaction.name}.{what}", _LIMIT)
    return "@`" + name.replace("`", "``") + "`"


def _set(connection: Connection, transaction: Table, values: dict[str, Any]) -> None:
    """Set variables; those that are meant for a column by its key."""
    names, parameters = [], []
    for i, (key, value) in enumerate(values.items()):
        c = transaction.c.get(key)
        name = _variable_name(transaction, key if c is None else c.name)
        names.append(f"{name.replace(':', chr(92) + ':')} = :history__{i}")
        type_ = None if c is None else c.type
        parameters.append(bindparam(f"history__{i}", value, type_=type_))
    connection.execute(text(f"SET {', '.join(names)}").bindparams(*parameters))


def _nothing(transaction: Table) -> dict[str, Any]:
    keys = [c.key for c in transaction.c if c is not transaction.c.id]
    return dict.fromkeys([*_OWN, *keys])


def tell(connection: Connection, transaction: Table, row: TransactionRow, *, anew: bool) -> None:
    """Mark the transaction that is under way, and say what its transaction row shall hold."""
    values = {**_nothing(transaction), **row, "history__is_marked": 1}
    if not anew:
        for what in ("history__tx", "history__is_less"):
            del values[what]
    _set(connection, transaction, values)


def known(connection: Connection, transaction: Table) -> int | None:
    """The id of the row of the transaction that is under way."""
    id_ = transaction.c.id
    name = literal_column(_variable_name(transaction, "history__tx"), BigInteger())
    return connection.scalar(select(id_).where(id_ == name))


def adopt(connection: Connection, transaction: Table, tx: int | None, *, keep: bool) -> None:
    """Let the triggers use the transaction row ``tx``."""
    _set(connection, transaction, {"history__tx": tx})


def finish(connection: Connection, transaction: Table) -> int | None:
    """The transaction is about to end; its id, if triggers have taken versions back."""
    less: Any = literal_column(_variable_name(transaction, "history__is_less"))
    less = connection.scalar(select(less))
    tx = known(connection, transaction) if less else None
    _set(connection, transaction, _nothing(transaction))
    return tx


def forget(connection: Connection, transaction: Table) -> None:
    """The transaction is about to be rolled back, which variables are not."""
    if not connection.invalidated:
        # a connection that is lost has lost its variables, too
        with contextlib.suppress(DBAPIError):
            _set(connection, transaction, _nothing(transaction))
