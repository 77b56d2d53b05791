"""Columns that say when a row changed, kept right by every statement: what the mixins stand on.

A table with such a column is *stamped*. Any UPDATE of it that does not set the column itself, and
any upsert, is extended on its way to the database: the SET gets an expression that compares old
and new values there, so that only real changes count. All statements of a session pass
``before_execute`` of its engine, which is listened to once a class with such a column was mapped.
"""

from __future__ import annotations

import datetime
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Insert,
    Table,
    Update,
    bindparam,
    literal_column,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapper, Session, SessionTransaction
from sqlalchemy.sql import visitors

from .compare import identical
from .listeners import Listeners
from .mapping import column_properties, key_columns
from .statement import (
    criteria,
    is_of_flush,
    is_ordered,
    parent_table,
    plain,
    resolved,
    set_clause,
    table_of,
)

_KEY: Final = "sqlalchemy_history.stamps"
_ABOVE: Final = "sqlalchemy_history.stamps_above"

#: from what changed ({attribute: condition}) and the time to the column's new value
Build = Callable[
    [ColumnElement[Any], Mapping[str, ColumnElement[bool]], datetime.datetime, Dialect], Any
]


#: the parameters of a statement, for each time that it is executed
_Rows = Sequence[Mapping[str, Any]]


class Stamps(NamedTuple):
    """The stamped columns of a table, and which attributes of the class count as its contents."""

    builders: dict[str, Build]
    names: dict[str, str]


class Above(NamedTuple):
    """Of a table of joined inheritance: where the stamped columns are, and which attributes it has.

    :ivar keys: (key column of this table, key column of ``table``).
    """

    table: Table
    keys: tuple[tuple[Column[Any], Any], ...]
    names: dict[str, str]


def stamp(mapper: Mapper[Any], column: Column[Any], build: Build) -> None:
    """Keep ``column`` of the class's table right from now on."""
    table = column.table
    stamps: Stamps = table.info.setdefault(_KEY, Stamps({}, {}))
    stamps.builders[column.key] = build
    stamps.names.update(_counted_columns(mapper, table))
    own = mapper.local_table
    if own is not table and isinstance(own, Table):
        keys = zip(key_columns(mapper, mapper), mapper.primary_key, strict=True)
        above: Above = own.info.setdefault(_ABOVE, Above(table, tuple(keys), {}))
        above.names.update(_counted_columns(mapper, own))
    _listen()


def _counted_columns(mapper: Mapper[Any], table: FromClause) -> dict[str, str]:
    """The columns of a table whose changes count, with the names of their attributes."""
    return {
        column.key: prop.key
        for prop in column_properties(mapper)
        for column in prop.columns
        if column.table is table and column is not mapper.version_id_col
    }


def counted_attributes(mapper: Mapper[Any]) -> list[str]:
    """Names of the attributes of a class whose changes count."""
    stamped = {column for table in mapper.tables for column in _stamps_of(table).builders}
    return [
        prop.key
        for prop in column_properties(mapper)
        if isinstance(prop.columns[0], Column)
        and prop.columns[0].key not in stamped
        and prop.columns[0] is not mapper.version_id_col
    ]


def inserted_attributes(context: Any) -> list[str]:
    """The attributes that the row, whose INSERT ``context`` is about, gives a value."""
    compiled = context.compiled
    stamps = _stamps_of(compiled.statement.table)
    sets = getattr(compiled.compile_state, "_dict_parameters", None) or {}
    parameters = dict(context.current_parameters)
    if getattr(compiled.compile_state, "_has_multi_parameters", False):
        # get_current_parameters() would do it, but not for an ORM INSERT
        column = context.current_column
        row = column.index + 1 if hasattr(column, "original") else 0
        of_row = {key: f"{key}_m{row}" for key in stamps.names}
        parameters = {
            key: parameters[name] if name in parameters else parameters.get(key)
            for key, name in of_row.items()
            if name in parameters or (row == 0 and key in parameters)
        }
    keys = {key for key, value in parameters.items() if value is not None}
    # what is set and has no parameter is an expression
    keys.update({getattr(c, "key", c) for c in sets} - parameters.keys())
    keys.update(getattr(c, "key", c) for c in compiled.statement._select_names or ())
    automatic = compiled.statement.table.autoincrement_column
    return [
        name
        for key, name in stamps.names.items()
        if key in keys
        and key not in stamps.builders
        and (automatic is None or key != automatic.key)
    ]


# -- one time for all that a flush changes


def now_of(connection: Connection) -> datetime.datetime:
    """The time of the flush that uses ``connection``; of anything else, now."""
    owner = connection.info.get(_KEY)
    session = None if owner is None else owner()
    found = None if session is None or not session._flushing else session.info.get(_KEY)
    return found or _now()


def now_of_insert(context: Any) -> datetime.datetime:
    """The same for all that the INSERT gives a default, whose execution ``context`` is about."""
    now: datetime.datetime = context.__dict__.setdefault(_KEY, now_of(context.root_connection))
    return now


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


#: called with the session and the flush's time when a flush begins
before_flush_hooks: list[Callable[[Session, datetime.datetime], None]] = []


def _before_flush(session: Session, flush_context: Any, instances: Any) -> None:
    now = session.info[_KEY] = _now()
    for hook in before_flush_hooks:
        hook(session, now)


def _after_flush(session: Session, flush_context: Any) -> None:
    """The flush ended, or failed; a bulk operation of the session is none, but looks like one."""
    session.info.pop(_KEY, None)


_listeners: Final = Listeners()


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    connection.info[_KEY] = weakref.ref(session)
    if connection.engine not in _listeners:
        _listeners.add(connection.engine, {"before_execute": extend}, retval=True)


def _listen() -> None:
    if Session not in _listeners:
        _listeners.add(
            Session,
            {
                "after_begin": _after_begin,
                "before_flush": _before_flush,
                "after_flush_postexec": _after_flush,
                "after_soft_rollback": _after_flush,
            },
        )


def stop() -> None:
    """Listen to nothing any more, until the next class with a stamped column is mapped."""
    _listeners.clear()


# -- statements


def _info(table: Any) -> dict[Any, Any]:
    table = parent_table(table)
    return {} if table is None else table.info


def _stamps_of(table: Any) -> Stamps:
    stamps: Stamps = _info(table).get(_KEY) or Stamps({}, {})
    return stamps


def extend(
    connection: Connection, statement: Any, multiparams: Any, params: Any, options: Any
) -> tuple[Any, Any, Any]:
    """The statement and its parameters, with values for stamped columns that it does not set.

    Who records what the statement is going to do asks for it first; asking twice does no harm.
    """
    if isinstance(statement, (Update, Insert)):
        info = _info(table_of(statement))
        rows = multiparams or ([params] if params else [{}])
        if _ABOVE in info and isinstance(statement, Update) and not is_of_flush(statement, options):
            statement = _update_above(connection, statement, info[_ABOVE], rows)
        stamps = info.get(_KEY)
        if stamps is not None:
            if isinstance(statement, Insert):
                many = len(multiparams or ()) > 1
                return _upsert(connection, statement, stamps, many), multiparams, params
            statement, rows = _update(connection, statement, stamps, rows)
            return (statement, rows, {}) if multiparams else (statement, [], rows[0])
    return statement, multiparams, params


def _update(
    connection: Connection, statement: Any, stamps: Stamps, rows: _Rows
) -> tuple[Any, _Rows]:
    dialect = connection.dialect
    core = resolved(statement, dialect)
    live: FromClause = core.statement.table
    sets = set_clause(core, live, rows[0])
    wanted = {key: build for key, build in stamps.builders.items() if key not in sets}
    if not wanted or not sets:
        return statement, rows
    values, rows = _renamed(sets, live, rows)
    first = _stamped(live, stamps, wanted, values, now_of(connection), dialect)
    return _with_values(statement, live, {**first, **values}, dialect), rows


def _renamed(
    sets: Mapping[str, Any], live: FromClause, rows: _Rows
) -> tuple[dict[str, Any], _Rows]:
    """The SET clause and the parameters without parameters of the name of a column.

    Such a parameter may stand in the SET clause alone.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for key, value in sets.items():
        if isinstance(value, BindParameter) and value.required and value.key in rows[0]:
            names[value.key] = f"stamped_{value.key}"
            values[key] = bindparam(names[value.key], type_=live.c[key].type)
        else:
            values[key] = value
    if names:
        rows = [{names.get(name, name): value for name, value in row.items()} for row in rows]
    return values, rows


def _update_above(connection: Connection, statement: Any, above: Above, rows: _Rows) -> Any:
    """Stamp the rows of the base table of joined inheritance that ``statement`` is going to change.

    Returns the statement, marked: it passes here once for each who listens.
    """
    if statement._execution_options.get(_ABOVE):
        return statement
    dialect = connection.dialect
    core = resolved(statement, dialect)
    live = core.statement.table
    values, rows = _renamed(set_clause(core, live, rows[0]), live, rows)
    joined = [live.c[own.key] == base for own, base in above.keys]

    def about_to(*conditions: Any) -> ColumnElement[bool]:
        matching = select(live.c[above.keys[0][0].key]).where(*joined, *criteria(core), *conditions)
        return plain(matching).correlate(above.table).exists()

    changed = {
        name: about_to(condition)
        for name, condition in _conditions(live, above.names, values, dialect).items()
    }
    if changed:
        now = now_of(connection)
        stamped = {
            key: build(above.table.c[key], changed, now, dialect)
            for key, build in _stamps_of(above.table).builders.items()
        }
        connection.execute(update(above.table).where(or_(*changed.values())).values(stamped), rows)
    return statement.execution_options(**{_ABOVE: True})


def _with_values(statement: Any, live: Any, values: Mapping[str, Any], dialect: Dialect) -> Any:
    """``statement``, which is about ``live``, with the SET clause ``values``, in that order.

    MySQL computes from left to right, and later expressions see what earlier ones have set.
    """
    statement = statement._clone()
    pairs = {live.c[key]: value for key, value in values.items()}
    keeps_order = is_ordered(statement)
    statement._values = None
    if hasattr(statement, "_ordered_values"):
        statement._ordered_values = None
    statement._maintain_values_ordering = False
    if keeps_order or dialect.name in ("mysql", "mariadb"):
        if statement._annotations.get("dml_strategy") == "bulk":
            # an ORM update by primary key takes no ordered values; the Core statement it makes does
            plain = update(live._deannotate()).where(*statement._where_criteria)
            statement = plain._annotate(dict(statement._annotations))
        return statement.ordered_values(*pairs.items())
    return statement.values(pairs)


def _upsert(connection: Connection, statement: Any, stamps: Stamps, many: bool) -> Any:
    clause = statement._post_values_clause
    name = next(
        (name for name in ("update_values_to_set", "update") if hasattr(clause, name)), None
    )
    if name is None:
        return statement
    sets: dict[str, Any] = {
        str(getattr(c, "key", c)): value for c, value in dict(getattr(clause, name)).items()
    }
    wanted = {key: build for key, build in stamps.builders.items() if key not in sets}
    if not wanted:
        return statement
    live = statement.table
    dialect = connection.dialect
    first = _stamped(live, stamps, wanted, sets, now_of(connection), dialect)
    if many and dialect.name in ("mysql", "mariadb"):
        # the drivers' executemany() takes no parameters behind the VALUES
        first = {key: _with_literals(value, dialect) for key, value in first.items()}
    clause = clause._clone()
    everything: dict[str, Any] = {**first, **sets}
    if name == "update":
        order = clause._parameter_ordering or [c.key for c in live.c if c.key in sets]
        clause._parameter_ordering = [*first, *order]
        clause.update = everything
    else:
        old = clause.update_values_to_set
        clause.update_values_to_set = (
            everything if isinstance(old, dict) else list(everything.items())
        )
    statement = statement._clone()
    statement._post_values_clause = clause
    return statement


def _with_literals(expression: ColumnElement[Any], dialect: Dialect) -> ColumnElement[Any]:
    def literal(element: Any, **_: Any) -> Any:
        if not isinstance(element, BindParameter):
            return None
        text = element.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        return literal_column(str(text), element.type)

    replaced: ColumnElement[Any] = visitors.replacement_traverse(expression, {}, literal)
    return replaced


def _stamped(
    live: FromClause,
    stamps: Stamps,
    wanted: Mapping[str, Build],
    values: Mapping[str, Any],
    now: datetime.datetime,
    dialect: Dialect,
) -> dict[str, Any]:
    """The new values of the stamped columns, if the columns in ``values`` get those."""
    counted = {k: name for k, name in stamps.names.items() if k not in stamps.builders}
    changed = _conditions(live, counted, values, dialect)
    if not changed:
        return {}
    return {key: build(live.c[key], changed, now, dialect) for key, build in wanted.items()}


def _conditions(
    live: FromClause, names: Mapping[str, str], values: Mapping[str, Any], dialect: Dialect
) -> dict[str, ColumnElement[bool]]:
    """For each attribute of ``names``: its column differs from what ``values`` makes of it."""
    changed = {}
    for key, value in values.items():
        if key in names:
            column = live.c[key]
            new = value
            if isinstance(value, BindParameter) and value.unique:
                # one of a SET clause or of VALUES can be nothing else
                new = bindparam(None, value.effective_value, type_=column.type)
            elif not isinstance(value, ColumnElement):
                new = bindparam(None, value, type_=column.type)
            changed[names[key]] = not_(identical(column, new, dialect))
    return changed
