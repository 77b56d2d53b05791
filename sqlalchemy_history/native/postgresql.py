"""PostgreSQL: one function for each table, called once for each statement with all of its rows.

The functions are ``SECURITY DEFINER``, with a fixed ``search_path`` and not callable by others: who
may write the live table needs no right to write its history. They know the transaction's row by a
setting that lasts as long as the transaction or savepoint in which it was made. Anybody can change a
setting, so a row is taken for ours only if it was inserted by the database transaction that is
under way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    column,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy import Sequence as DatabaseSequence
from sqlalchemy import (
    table as a_table,
)
from sqlalchemy.types import UserDefinedType

from sqlalchemy_history.plan import TablePlan
from sqlalchemy_history.write import TX, TransactionRow, Writer

from .program import AMEND, REOPEN, TAKE_BACK, Program, Step, TransitionRows, with_tx
from .render import Renderer, TriggerDDL, short_name


class _Named(UserDefinedType[Any]):
    """A type of which no more is needed than its name."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        """The name."""
        return self.name


_REGCLASS: Any = _Named("regclass")
_OID: Any = _Named("oid")
_LIMIT = 63
_XIDS = 2**32
_TX = literal_column("history__tx", TX.type)
#: a transaction that was overtaken gets another id for all that it has written
MOVES = True
_NEW, _OLD = "history__new", "history__old"

_set_config: Any = func.set_config

#: event -> the transition tables that it has
_EVENTS = {
    "insert": f"REFERENCING NEW TABLE AS {_NEW} ",
    "update": f"REFERENCING OLD TABLE AS {_OLD} NEW TABLE AS {_NEW} ",
    "delete": f"REFERENCING OLD TABLE AS {_OLD} ",
    "truncate": "",
}


def create_shared(
    connection: Any, transaction: Table, plans: Iterable[TablePlan]
) -> Iterator[TriggerDDL]:
    """The functions about the transaction's row, which the triggers of ``plans`` share."""
    # in an order that does not depend on who asks: the models or a migration
    plans = sorted(plans, key=lambda plan: plan.version.fullname)
    path = _search_path(connection)
    for name, (arguments, returns, body) in _SHARED.items():
        yield from _function(
            transaction,
            name,
            arguments,
            returns,
            partial(body, transaction=transaction, plans=plans),
            path,
        )


def drop_shared(transaction: Table) -> Iterator[TriggerDDL]:
    """Drop what ``create_shared()`` made."""
    for name, (arguments, _, _) in _SHARED.items():
        yield TriggerDDL(partial(_drop_function, transaction, name, f"({_types(arguments)})"))


def create(connection: Any, plan: TablePlan) -> Iterator[TriggerDDL]:
    """The triggers of one table, in place of those that it has."""
    yield from drop(plan)
    path = _search_path(connection)
    yield from _function(plan.version, "record", "", "trigger", lambda r: _record(r, plan), path)
    for event in _EVENTS:
        yield TriggerDDL(partial(_trigger, plan, event))


def drop(plan: TablePlan) -> Iterator[TriggerDDL]:
    """Drop the triggers of one table; they go with their function."""
    yield TriggerDDL(partial(_drop_function, plan.version, "record", "() CASCADE"))


def installed(connection: Connection, plan: TablePlan) -> list[str]:
    """What the triggers of one table, and what they share, execute in this database.

    Nothing if something is missing.
    """
    r = Renderer.of(connection)
    names = [
        _function_name(r, plan.version, "record"),
        *(_function_name(r, plan.transaction, name) for name in _SHARED),
    ]
    proc = a_table("pg_proc", column("oid"), column("prosrc"), schema="pg_catalog")
    trigger = a_table("pg_trigger", column("tgfoid"), schema="pg_catalog")
    record = func.to_regproc(names[0])
    bodies = select(proc.c.prosrc).where(proc.c.oid.in_([func.to_regproc(name) for name in names]))
    there = select(func.count()).select_from(trigger).where(trigger.c.tgfoid == record)
    found = list(connection.scalars(bodies))
    complete = connection.scalar(there) == len(_EVENTS) and len(found) == len(names)
    return found if complete else []


def _drop_function(table: Table, name: str, arguments: str, r: Renderer) -> str:
    return f"DROP FUNCTION IF EXISTS {_function_name(r, table, name)}{arguments}"


def _trigger(plan: TablePlan, event: str, r: Renderer) -> str:
    when = "BEFORE" if event == "truncate" else "AFTER"
    return (
        f"CREATE TRIGGER history_{event} {when} {event.upper()} ON {r.table(plan.parent)} "
        f"{_EVENTS[event]}FOR EACH STATEMENT "
        f"EXECUTE FUNCTION {_function_name(r, plan.version, 'record')}()"
    )


def _function_name(r: Renderer, table: Table, name: str) -> str:
    return r.name(short_name(f"{table.name}_{name}", _LIMIT), table)


def _function(
    table: Table, name: str, arguments: str, returns: str, body: Any, path: Sequence[str]
) -> Iterator[TriggerDDL]:
    def build(r: Renderer) -> str:
        text = f"\n#variable_conflict use_variable\n{body(r)}\n"
        # nothing that is in the text can end it
        quote = f"$history_{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}$"
        schemas = ", ".join(map(r.column, ["pg_catalog", *path, "pg_temp"]))
        return (
            f"CREATE OR REPLACE FUNCTION {_function_name(r, table, name)}({arguments})\n"
            f"RETURNS {returns} LANGUAGE plpgsql SECURITY DEFINER\n"
            f"SET search_path = {schemas}\n"
            f"AS {quote}{text}{quote}"
        )

    yield TriggerDDL(build)
    yield TriggerDDL(
        lambda r: (
            f"REVOKE ALL ON FUNCTION {_function_name(r, table, name)}({_types(arguments)}) "
            f"FROM PUBLIC"
        )
    )


def _types(arguments: str) -> str:
    return ", ".join(part.split()[1] for part in arguments.split(", ") if part)


def setting(r: Renderer, what: str, transaction: Table) -> str:
    """The name of a setting, as an expression; each transaction table has its own."""
    return f"('history.{what}_' || CAST(CAST({r.text(r.table(transaction))} AS regclass) AS oid))"


# -- the transaction's row


def _known(r: Renderer, transaction: Table, plans: Sequence[TablePlan]) -> str:
    table, id_ = r.table(transaction), r.column(transaction.c.id.name)
    name = setting(r, "tx", transaction)
    # the savepoints of the transaction that is under way have later ids than itself; xmin has 32 bits
    own = "CAST(CAST(pg_current_xact_id() AS text) AS bigint)"
    later = f"mod(CAST(CAST(t.xmin AS text) AS bigint) - mod({own}, {_XIDS}) + {_XIDS}, {_XIDS})"
    return f"""BEGIN
  RETURN (SELECT t.{id_} FROM {table} AS t
    WHERE t.{id_} = CAST(nullif(current_setting({name}, true), '') AS bigint)
    AND CASE WHEN {later} < {_XIDS // 2}
      THEN pg_xact_status(CAST(CAST({own} + {later} AS text) AS xid8)) = 'in progress' END);
END"""


def _begin(r: Renderer, transaction: Table, plans: Sequence[TablePlan]) -> str:
    table, id_ = r.table(transaction), r.column(transaction.c.id.name)
    sequence: Any = transaction.c.id.default
    names, values = [], []
    given = []
    if sequence is not None and sequence.is_sequence:
        names.append(id_)
        values.append(r.sql(sequence.next_value()))
    for c in transaction.c:
        name = r.column(c.name)
        if c is transaction.c.id:
            continue
        if c.server_default is not None:
            given.append(name)
            continue
        names.append(name)
        values.append(f"coalesce(c.{name}, {_now(c)})" if c.key == "issued_at" else f"c.{name}")
    context = (
        f"jsonb_populate_record(CAST(NULL AS {table}), CAST(coalesce(nullif(current_setting("
        f"{setting(r, 'context', transaction)}, true), ''), '{{}}') AS jsonb))"
    )
    updates = "".join(
        f"\n  UPDATE {table} AS t SET {name} = c.{name} FROM {context} AS c "
        f"WHERE t.{id_} = history__tx AND c.{name} IS NOT NULL;"
        for name in given
    )
    return f"""DECLARE history__tx bigint;
BEGIN
  INSERT INTO {table} ({", ".join(names)}) SELECT {", ".join(values)}
  FROM {context} AS c RETURNING {id_} INTO history__tx;{updates}
  PERFORM set_config({setting(r, "tx", transaction)}, CAST(history__tx AS text), true);
  RETURN history__tx;
END"""


def _now(issued_at: Column[Any]) -> str:
    aware = getattr(issued_at.type.dialect_impl, "timezone", None)
    aware = getattr(getattr(issued_at.type, "impl_instance", issued_at.type), "timezone", aware)
    return "clock_timestamp()" if aware else "clock_timestamp() AT TIME ZONE 'UTC'"


def _existing(r: Renderer, plan: TablePlan, statement: str) -> str:
    """``statement``, if the version table exists; it may be dropped, or not be created yet."""
    there = f"to_regclass({r.text(r.table(plan.version))}) IS NOT NULL"
    return f"\n  IF {there} THEN\n    {statement};\n  END IF;"


def _behind(r: Renderer, transaction: Table, plans: Sequence[TablePlan]) -> str:
    """Give the transaction an id above ``history__newest``: see ``Writer.move_behind``."""
    table, id_ = r.table(transaction), r.column(transaction.c.id.name)
    columns = [c for c in transaction.c if c is not transaction.c.id]
    names = ", ".join(r.column(c.name) for c in columns)
    sequence = transaction.c.id.default
    moves = ""
    for plan in plans:
        version, tx = r.table(plan.version), r.column(plan.tx.name)
        if plan.end is not None:
            end = r.column(plan.end.name)
            keys = [r.column(c.name) for _, c in plan.keys]
            same = " AND ".join(f"v.{key} = own.{key}" for key in keys)
            moves += _existing(
                r,
                plan,
                f"UPDATE {version} AS v SET {end} = history__new FROM {version} AS own "
                f"WHERE own.{tx} = history__tx AND {same} AND v.{end} = history__tx",
            )
        moves += _existing(
            r, plan, f"UPDATE {version} SET {tx} = history__new WHERE {tx} = history__tx"
        )
    copy = f"{names} FROM {table} AS t WHERE t.{id_} = history__tx"
    if isinstance(sequence, DatabaseSequence):
        begun = f"""WHILE history__new <= history__newest LOOP
    history__new := {r.sql(sequence.next_value())};
  END LOOP;
  INSERT INTO {table} ({id_}, {names}) SELECT history__new, {copy};"""
    else:
        begun = f"""WHILE history__new <= history__newest LOOP
    DELETE FROM {table} AS t WHERE t.{id_} = history__new;
    INSERT INTO {table} ({names}) SELECT {copy} RETURNING {id_} INTO STRICT history__new;
  END LOOP;"""
    return f"""DECLARE history__new bigint := 0;
BEGIN
  {begun}{moves}
  DELETE FROM {table} AS t WHERE t.{id_} = history__tx;
  PERFORM set_config({setting(r, "tx", transaction)}, CAST(history__new AS text), true);
  RETURN history__new;
END"""


def _forget(r: Renderer, transaction: Table, plans: Sequence[TablePlan]) -> str:
    """Take the transaction's row back if none of its versions is left."""
    table, id_ = r.table(transaction), r.column(transaction.c.id.name)
    checks = ""
    for plan in plans:
        found = f"SELECT FROM {r.table(plan.version)} WHERE {r.column(plan.tx.name)} = history__tx"
        checks += _existing(r, plan, f"IF EXISTS ({found}) THEN RETURN; END IF")
    return f"""BEGIN
  IF current_setting({setting(r, "keep", transaction)}, true) = CAST(history__tx AS text) THEN
    RETURN;
  END IF;{checks}
  DELETE FROM {table} AS t WHERE t.{id_} = history__tx;
END"""


#: what the triggers of all tables share: name -> (arguments, result, body)
_SHARED = {
    "known": ("", "bigint", _known),
    "begin": ("", "bigint", _begin),
    "behind": ("history__tx bigint, history__newest bigint", "bigint", _behind),
    "forget": ("history__tx bigint", "void", _forget),
}


# -- the rows


def _record(r: Renderer, plan: TablePlan) -> str:
    program = Program(plan, Writer(r.dialect))
    new, old = TransitionRows.named(_NEW, plan), TransitionRows.named(_OLD, plan)
    live = TransitionRows(plan.parent, plan)
    is_news, are_gone = r.sql(program.is_news(new)), r.sql(program.are_gone(old))
    parts = {
        "INSERT": (is_news, [new], list(program.writing(new, None))),
        "UPDATE": (
            f"{are_gone} OR {is_news}",
            [old, new],
            [*program.leaving(old), *program.writing(new, old)],
        ),
        "DELETE": (are_gone, [old], list(program.leaving(old))),
        "TRUNCATE": (
            f"EXISTS (SELECT FROM {r.table(plan.parent)})",
            [live],
            list(program.leaving(live, all_of_them=True)),
        ),
    }
    body = "".join(
        f"  {'IF' if event == 'INSERT' else 'ELSIF'} TG_OP = '{event}' THEN\n"
        f"{_meeting(r, plan, sources)}"
        f"    IF NOT ({news}) THEN RETURN NULL; END IF;\n"
        + _beginning(r, plan, [r.sql(one) for rows in sources for one in program.newest(rows)])
        + "".join(_step(r, step) for step in steps)
        for event, (news, sources, steps) in parts.items()
    )
    return f"""DECLARE
  history__tx bigint;
  history__is_known boolean;
  history__is_less boolean := false;
BEGIN
{body}  END IF;
  IF history__is_less THEN
    PERFORM {_function_name(r, plan.transaction, "forget")}(history__tx);
  END IF;
  RETURN NULL;
END"""


def _meeting(r: Renderer, plan: TablePlan, sources: Sequence[TransitionRows]) -> str:
    """Wait for whoever is writing versions of the same rows, and notice who did.

    A part of an object in another table than the root's may change while somebody changes another
    part: the rows of the root table are locked. And a transaction with a snapshot may give a row
    a key whose last owner others have deleted since: it sees that row, and its open version, still.
    To lock that version is a serialization failure.
    """
    root, text = plan.hierarchy[0], ""
    one: Select[Any] = select(literal_column("1"))
    for rows in sources:
        if plan is not root:
            owners = one.where(rows.holds(root.keys_of(root.parent)))
            text += _perform(r, owners.with_for_update(key_share=True))
    if plan.strategy.has_end:
        v, stale = plan.version, ""
        for rows in sources:
            still_open = rows.holds(plan.keys_of(v)), plan.strategy.is_open(plan, v)
            stale += _perform(r, one.where(*still_open).with_for_update())
        text += (
            "    IF current_setting('transaction_isolation') <> 'read committed' THEN\n"
            f"{stale}    END IF;\n"
        )
    return text


def _perform(r: Renderer, statement: Select[Any]) -> str:
    return f"    PERFORM {r.sql(statement).removeprefix('SELECT ')};\n"


def _beginning(r: Renderer, plan: TablePlan, newest: Sequence[str]) -> str:
    known, begin, behind = (
        _function_name(r, plan.transaction, what) for what in ("known", "begin", "behind")
    )
    highest = ", ".join(newest)
    return f"""    history__tx := {known}();
    history__is_known := history__tx IS NOT NULL;
    IF history__tx IS NULL THEN
      history__tx := {begin}();
    ELSIF greatest({highest}) > history__tx THEN
      history__tx := {behind}(history__tx, greatest({highest}));
    END IF;
"""


def _step(r: Renderer, step: Step) -> str:
    statement = f"{r.sql(with_tx(step.statement, _TX))};"
    if step.kind == TAKE_BACK:
        statement += "\n    history__is_less := history__is_less OR FOUND;"
    if step.kind in (AMEND, TAKE_BACK):
        return f"    IF history__is_known THEN\n    {statement}\n    END IF;\n"
    if step.kind == REOPEN:
        return f"    IF history__is_less THEN\n    {statement}\n    END IF;\n"
    return f"    {statement}\n"


# -- what a session says


def tell(connection: Connection, transaction: Table, row: TransactionRow, *, anew: bool) -> None:
    """Say what a transaction row that a trigger makes shall hold.

    :param anew: a session's transaction begins: what was written before is another one's.
    """
    pairs: list[Any] = []
    for key, value in row.items():
        c = transaction.c[key]
        value_of: Any = bindparam(None, value, type_=c.type, unique=True)
        pairs += [cast(c.name, Text), cast(value_of, c.type)]
    context = cast(func.jsonb_build_object(*pairs), Text)
    settings = [_set_config(_setting(connection, "context", transaction), context, true())]
    if anew:
        settings += (
            _set_config(_setting(connection, what, transaction), "", true())
            for what in ("tx", "keep")
        )
    connection.execute(select(*settings))


def known(connection: Connection, transaction: Table) -> int | None:
    """The id of the row of the transaction that is under way."""
    setting = func.current_setting(_setting(connection, "tx", transaction), true())
    id_ = transaction.c.id
    there = select(id_).where(id_ == cast(func.nullif(setting, ""), id_.type))
    return connection.scalar(there)


def adopt(connection: Connection, transaction: Table, tx: int | None, *, keep: bool) -> None:
    """Let the triggers use the transaction row ``tx``, and ``keep`` it also without versions."""
    value = "" if tx is None else str(tx)
    connection.execute(
        select(
            _set_config(_setting(connection, "tx", transaction), value, true()),
            _set_config(_setting(connection, "keep", transaction), value if keep else "", true()),
        )
    )


def finish(connection: Connection, transaction: Table) -> int | None:
    """Nothing is left to do: settings end with the transaction, and triggers take rows back."""
    return None


def _setting(connection: Connection, what: str, transaction: Table) -> ColumnElement[str]:
    translate = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translate.get(transaction.schema, transaction.schema)
    name = connection.dialect.identifier_preparer.format_table(
        Table(transaction.name, MetaData(), schema=schema)
    )
    if connection.dialect.identifier_preparer._double_percents:
        name = name.replace("%%", "%")
    return func.concat(f"history.{what}_", cast(cast(literal(name), _REGCLASS), _OID))


def _search_path(connection: Any) -> Sequence[str]:
    """The schemas in which names that have none are looked up."""
    if isinstance(connection, Connection):
        return connection.scalars(select(func.unnest(func.current_schemas(false())))).all()
    return [connection.dialect.default_schema_name or "public"]


def forget(connection: Connection, transaction: Table) -> None:
    """Settings end with the transaction."""
