"""What autogenerate finds, rewritten so that history comes along, and back again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from alembic.autogenerate import comparators, renderers
from alembic.operations import MigrateOperation, ops
from alembic.util import DispatchPriority, PriorityDispatchResult, to_list
from sqlalchemy.dialects import mysql, postgresql

from sqlalchemy_history.plan import (
    INFO_KEY,
    PLUGIN_KEY,
    TablePlan,
    configure_mappers_of,
    table_plan,
)
from sqlalchemy_history.plugins.rows import RowKey
from sqlalchemy_history.transaction import COPY_KEY

from .triggers import Name, Names, tables_with_triggers


class HistoryOp(MigrateOperation):
    """A call of one of the operations above in a migration, and what its reverse calls.

    :ivar call: name and arguments; None: there is nothing to do this way.
    """

    def __init__(self, call: Call | None, back: Call | None = None) -> None:
        self.call = call
        self._back = back

    def reverse(self) -> HistoryOp:
        """The operation of the other direction."""
        return HistoryOp(self._back, self.call)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How ``alembic check`` reports it."""
        return self.call or ("nothing",)


_TRANSACTION_TABLE: Final = ({"id", "issued_at"},)
_PLUGIN_TABLES: Final = (
    {"id", "verb", "object_tx_id", "target_tx_id"},
    {"id", "table_name", "row_id", "event_type"},
)

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


@renderers.dispatch_for(HistoryOp)
def _render(autogen_context: Any, operation: HistoryOp) -> list[str]:
    if operation.call is None:
        return []
    name, positional, named = operation.call
    arguments = [repr(value) for value in positional]
    arguments += [f"{key}={value!r}" for key, value in named.items() if value is not None]
    prefix = autogen_context.opts["alembic_module_prefix"]
    return [f"{prefix}{name}({', '.join(arguments)})"]


@comparators.dispatch_for("autogenerate", priority=DispatchPriority.FIRST)
def _show_version_tables(autogen_context: Any, upgrade_ops: ops.UpgradeOps) -> Any:
    """Have the version tables in the metadata before it is looked at."""
    for metadata in to_list(autogen_context.metadata):
        configure_mappers_of(metadata)
    # several Bases in one database: alembic refuses a table that more than one of them has
    autogen_context.table_key_to_table = {
        table.key: table for table in _tables(autogen_context).values()
    }
    return PriorityDispatchResult.CONTINUE


@comparators.dispatch_for("autogenerate", priority=DispatchPriority.LAST)
def _carry_history_along(autogen_context: Any, upgrade_ops: ops.UpgradeOps) -> Any:
    """Add what histories need to the changes that were found."""
    _Autogenerate(autogen_context).rewrite(upgrade_ops)
    return PriorityDispatchResult.CONTINUE


def _tables(autogen_context: Any) -> dict[Name, sa.Table]:
    """All tables; for one that the Bases of a manager share, the one that is no copy."""
    tables = [t for m in to_list(autogen_context.metadata) for t in m.tables.values()]
    tables.sort(key=lambda table: COPY_KEY not in table.info)
    return {_name_of(table): table for table in tables}


class _Autogenerate:
    """Rewrites the operations of one revision."""

    def __init__(self, autogen_context: Any) -> None:
        self._keep_dropped = bool(autogen_context.opts.get("history_keep_dropped_columns"))
        self._dialect = autogen_context.dialect.name
        self._partial = self._dialect in ("sqlite", "postgresql")
        self._tables = _tables(autogen_context)
        plans = [(key, table_plan(table), table) for key, table in self._tables.items()]
        self._parents = {key: p for key, p, table in plans if p and p.parent is table}
        self._versions = {key: p for key, p, table in plans if p and p.version is table}
        self._transactions = {_name_of(plan.transaction) for plan in self._parents.values()}
        self._created: set[Name] = set()
        self._dropped: dict[Name, sa.Table] = {}
        #: old name -> new name of tables that say what they were called, and of their version tables
        self._renamed: dict[Name, Name] = {}
        self._connection = autogen_context.connection
        self._triggered: set[Name] = set()
        #: columns that tell a table that a sequence goes with; the models know it no more
        self._sequenced = [*_PLUGIN_TABLES, *(() if self._transactions else _TRANSACTION_TABLE)]
        #: comes before all else, so that its reverse comes after all else
        self._first: list[MigrateOperation] = []
        self._last: list[MigrateOperation] = []

    def rewrite(self, upgrade_ops: ops.UpgradeOps) -> None:
        """Put the operations that history needs beside those that were found."""
        # what triggers keep for themselves is in no model; it goes with them
        upgrade_ops.ops = [o for o in upgrade_ops.ops if not _is_of_triggers(o)]
        gone = {_name(o) for o in upgrade_ops.ops if isinstance(o, ops.DropTableOp)}
        # what else there is belongs to somebody else, or to another schema
        known = self._tables.keys() | gone
        schemas = {schema for schema, _ in known}
        self._triggered = tables_with_triggers(self._connection, schemas) & known
        found = self._rename_tables(list(upgrade_ops.ops))
        self._created = {_name(o) for o in found if isinstance(o, ops.CreateTableOp)}
        self._dropped = {_name(o): o.to_table() for o in found if isinstance(o, ops.DropTableOp)}
        done: list[MigrateOperation] = []
        changed: set[Name] = set()
        for operation in found:
            rewritten = list(self._rewritten(operation))
            if rewritten and hasattr(operation, "table_name"):
                changed.add(_name(operation))
            done += rewritten
        self._backfill()
        self._triggers(changed | self._renamed.keys() | set(self._renamed.values()))
        upgrade_ops.ops[:] = [*self._first, *done, *self._last]

    def _rewritten(self, operation: MigrateOperation) -> Iterable[MigrateOperation]:
        """What becomes of one of the operations that were found; of some, nothing."""
        if isinstance(operation, ops.CreateTableOp):
            return self._created_table(operation)
        if isinstance(operation, ops.DropTableOp):
            return self._dropped_table(operation)
        if not isinstance(operation, ops.ModifyTableOps):
            return [operation]
        if _name(operation) in self._versions:
            return self._modified_version_table(operation)
        return self._modified_parent(operation)

    # -- tables that come and go

    def _created_table(self, operation: ops.CreateTableOp) -> list[MigrateOperation]:
        name = _name(operation)
        # what versioning keeps there is not a migration's business, and cannot be written into it
        operation.info = {
            key: value
            for key, value in operation.info.items()
            if key != "renamed_from" and not str(key).startswith(INFO_KEY)
        }
        if name in self._versions:
            _retype(operation, partial(_existing_enum, self._dialect))
        table = self._tables[name]
        if name not in self._transactions and PLUGIN_KEY not in table.info:
            return [operation]
        _retype(operation, _plain_type)
        return _with_sequence(operation) if "id" in table.c else [operation]

    def _dropped_table(self, operation: ops.DropTableOp) -> list[MigrateOperation]:
        schema, name = _name(operation)
        parents = [key for key in self._tables if f"{key[1]}_version" == name]
        if parents:
            parent = (schema, name.removesuffix("_version"))
            parent = parent if parent in parents else parents[0]
            table = parent[1] if parent[0] == schema else [(parent[1], f"{schema}.{name}")]
            named = {"transaction_schema": self._transaction_schema(), "schema": parent[0]}
            self._first.append(HistoryOp(None, ("backfill_versions", (table,), named)))
            if operation._reverse is not None:
                _retype(operation._reverse, partial(_existing_enum, self._dialect))
        columns = set(operation.to_table().c.keys())
        has_sequence = any(columns >= marks for marks in self._sequenced)
        return _with_sequence(operation) if has_sequence else [operation]

    def _backfill(self) -> None:
        """First versions for the rows of tables that are there and become versioned."""
        groups: dict[Any, list[Any]] = {}
        for name, plan in self._versions.items():
            if name in self._created and _name_of(plan.parent) not in self._created:
                named = {**_names(plan), "schema": plan.parent.schema}
                pair = self._pair(_name_of(plan.parent))
                groups.setdefault(tuple(named.items()), []).append(pair)
        for named, tables in groups.items():
            self._last.append(HistoryOp(("backfill_versions", (tables,), dict(named))))

    # -- triggers

    def _triggers(self, changed: set[Name]) -> None:
        """Drop triggers before all else and make them after all else, of what changes and is new."""
        native = {name for name, p in self._parents.items() if p.options.native_versioning}
        everything = bool(self._transactions & changed)

        def is_touched(name: Name) -> bool:
            plan = self._plan_of(name)
            if plan is None or name not in self._triggered & native:
                return True
            return everything or bool(self._looked_at(plan) & changed)

        before, after = self._hierarchies(self._triggered), self._hierarchies(native)
        old = [group for group in before if any(map(is_touched, group))]
        new = [group for group in after if any(map(is_touched, group))]
        versions = self._created & self._versions.keys()
        if not new and after and (versions or self._renamed):
            # what triggers share knows all version tables: making some of them anew says it anew
            old, new = before[:1], after[:1]
        for group in reversed(old):
            there = self._trigger_call("drop", group, last=not native)
            self._first.insert(0, HistoryOp(there, self._trigger_call("create", group)))
        for group in new:
            back = self._trigger_call("drop", group, last=not self._triggered)
            self._last.append(HistoryOp(self._trigger_call("create", group), back))

    def _looked_at(self, plan: TablePlan) -> set[Name]:
        """The tables that tell what the triggers of a table do."""
        found = {table for part in plan.hierarchy for table in (part.parent, part.version)}
        if self._dialect in ("mysql", "mariadb"):
            # there what foreign keys cascade is recorded by triggers, too
            referred = [plan.parent]
            while referred:
                keys = referred.pop().foreign_keys
                new = {key.column.table for key in keys} - found
                found |= new
                referred += new
        return {_name_of(table) for table in found}

    def _plan_of(self, name: Name) -> TablePlan | None:
        """The plan of a table of the models, or of one that was renamed since."""
        return self._parents.get(self._renamed.get(name, name))

    def _hierarchies(self, names: Iterable[Name]) -> list[list[Name]]:
        """``names`` as joined hierarchies, the base table first."""
        found: dict[Name, list[Name]] = {}
        for name in sorted(names, key=str):
            found.setdefault(self._base_of(name), []).append(name)
        return [
            sorted(group, key=lambda name: self._renamed.get(name, name) != base)
            for base, group in found.items()
        ]

    def _base_of(self, name: Name) -> Name:
        plan = self._plan_of(name)
        if plan is not None:
            return _name_of(plan.hierarchy[0].parent)
        # no model says it any more: it is the table that the primary key refers to
        table = self._tables.get(name, self._dropped.get(name))
        for column in () if table is None else table.primary_key:
            for key in column.foreign_keys:
                *schema, base, _ = key.target_fullname.split(".")
                if (found := (schema[0] if schema else None, base)) in self._triggered:
                    return self._base_of(found)
        return name

    def _trigger_call(self, verb: str, group: Sequence[Name], *, last: bool = False) -> Call:
        plan = self._plan_of(group[0])
        names = _names(plan) if plan else {"transaction_schema": self._transaction_schema()}
        named = {"shared": last or None, "schema": group[0][0], **names}
        pairs = [self._pair(name) for name in group]
        tables = pairs[0] if len(pairs) == 1 and isinstance(pairs[0], str) else pairs
        return f"{verb}_history_triggers", (tables,), named

    # -- names

    def _pair(self, name: Name) -> str | tuple[str, str]:
        """How operations are told of a table and its version table."""
        schema, table = name
        plan, default = self._plan_of(name), f"{table}_version"
        if plan is not None:
            version = _version_of(plan, name)
        else:  # that of a class which has no history any more
            gone = [o[0] for o in self._dropped if o[1] == default]
            version = default if not gone or schema in gone else f"{gone[0]}.{default}"
        return table if version == default else (table, version)

    def _transaction_schema(self) -> str | None:
        gone = (name for name in self._dropped if name[1] == "transaction")
        return next((schema for schema, _ in (*self._transactions, *gone)), None)

    # -- tables that were renamed

    def _rename_tables(self, found: list[MigrateOperation]) -> list[MigrateOperation]:
        created = {_name(o): o for o in found if isinstance(o, ops.CreateTableOp)}
        dropped = {_name(o): o for o in found if isinstance(o, ops.DropTableOp)}
        renames: list[MigrateOperation] = []
        pairs = self._renamed
        for name, plan in self._parents.items():
            old = (name[0], str(plan.parent.info.get("renamed_from")))
            version = _name_of(plan.version)
            old_version = (version[0], plan.options.table_name % old[1])
            if name in created and old in dropped and old_version in dropped:
                pairs |= {old: name, old_version: version}
                renames.append(HistoryOp(_rename(plan, old, name), _rename(plan, name, old)))
        if not pairs:
            return found
        gone = [*(dropped[old] for old in pairs), *(created[new] for new in pairs.values())]
        others = [operation for operation in found if operation not in gone]
        before = [o for o in others if isinstance(o, ops.ModifyTableOps) and _name(o) in pairs]
        for operation in others:
            if isinstance(operation, ops.ModifyTableOps):
                operation.ops = _without_moved_keys(operation.ops, pairs)
        return [*before, *renames, *(o for o in others if o not in before)]

    # -- tables that change

    def _renamed_columns(self, operation: ops.ModifyTableOps) -> dict[str, str]:
        """New name -> old name of versioned columns that say that they were renamed."""
        name = _name(operation)
        plan = self._parents.get(name) or self._versions.get(name)
        if plan is None:
            return {}
        added = {o.column.name for o in operation.ops if isinstance(o, ops.AddColumnOp)}
        dropped = {o.column_name for o in operation.ops if isinstance(o, ops.DropColumnOp)}
        return {
            live.name: live.info["renamed_from"]
            for live, _ in plan.columns
            if live.name in added and live.info.get("renamed_from") in dropped
        }

    def _modified_parent(self, operation: ops.ModifyTableOps) -> Iterator[MigrateOperation]:
        plan = self._parents.get(_name(operation))
        if plan is None:
            if _name(operation) in self._transactions:
                # MySQL does not drop the index of a column while a foreign key is there
                operation.ops.sort(key=lambda o: not isinstance(o, ops.DropConstraintOp))
            yield operation
            return
        renamed = self._renamed_columns(operation)
        changes = [o for o in operation.ops if _column_name(o) not in {*renamed, *renamed.values()}]
        names = _version_table(plan)
        if renamed:
            drops = [o for o in changes if isinstance(o, ops.DropIndexOp)]
            changes = [o for o in changes if o not in drops]
            yield from _modify(operation, drops)
            for new, old in renamed.items():
                there = ("rename_versioned_column", (plan.parent.name, old, new), names)
                back = ("rename_versioned_column", (plan.parent.name, new, old), names)
                yield HistoryOp(there, back)
        yield from _modify(operation, changes)
        versioned = {live.name for live, _ in plan.columns}
        with_values = [
            o
            for o in changes
            if isinstance(o, (ops.AddColumnOp, ops.DropColumnOp)) and _has_values(o.to_column())
        ]
        added = [o.column.name for o in with_values if isinstance(o, ops.AddColumnOp)]
        added = [column for column in added if column in versioned]
        dropped = [o.column_name for o in with_values if isinstance(o, ops.DropColumnOp)]

        def sync(columns: Sequence[str]) -> Call:
            return "sync_versions", (plan.parent.name, columns), {**names, **_names(plan)}

        if added:
            self._last.append(HistoryOp(sync(added)))
        if dropped and not self._keep_dropped:
            self._first.append(HistoryOp(None, sync(dropped)))

    def _modified_version_table(self, operation: ops.ModifyTableOps) -> Iterator[MigrateOperation]:
        def when(step: tuple[int, MigrateOperation]) -> tuple[int, bool]:
            return step[0], isinstance(step[1], HistoryOp)

        steps = sorted(self._steps(operation, self._versions[_name(operation)]), key=when)
        for (_, is_ours), group in groupby(steps, key=when):
            changes = [change for _, change in group]
            yield from changes if is_ours else _modify(operation, changes)

    def _steps(
        self, operation: ops.ModifyTableOps, plan: TablePlan
    ) -> Iterator[tuple[int, MigrateOperation]]:
        """The changes of a version table, and when: ends are there before an index needs them."""
        renamed = self._renamed_columns(operation)
        for change in operation.ops:
            column = _column_name(change)
            if column in renamed or column in renamed.values():
                continue
            if isinstance(change, ops.CreateIndexOp):
                if change.index_name != _open_index(plan):
                    yield 4, change
                elif self._partial or _name(operation) in self._created:
                    yield 4, _create_open_index(plan)
            elif isinstance(change, ops.DropIndexOp):
                is_open = change.index_name == _open_index(plan)
                yield 0, _create_open_index(plan).reverse() if is_open else change
            elif column == plan.options.end_transaction_column_name:
                link = "link_versions", (plan.version.name,), _of_version_table(plan)
                is_new = isinstance(change, ops.AddColumnOp)
                yield (3, HistoryOp(link)) if is_new else (1, HistoryOp(None, link))
                yield 2, change
            elif not (isinstance(change, ops.DropColumnOp) and self._keep_dropped):
                if isinstance(change, ops.AlterColumnOp):
                    # a version column never increments: Alembic warns where it is told so
                    change.kw.pop("autoincrement", None)
                yield 2, change


def _name(operation: Any) -> Name:
    return operation.schema, operation.table_name


def _is_of_triggers(operation: Any) -> bool:
    return isinstance(operation, ops.DropTableOp) and "history__tx" in operation.to_table().c


def _name_of(table: sa.Table) -> Name:
    return table.schema, table.name


def _version_of(plan: TablePlan, name: Name) -> str:
    """What operations are told of the version table of ``name``, which may be a former name."""
    schema, table = name
    here = name == _name_of(plan.parent)
    version = plan.version.name if here else plan.options.table_name % table
    return version if plan.version.schema == schema else f"{plan.version.schema}.{version}"


def _rename(plan: TablePlan, old: Name, new: Name) -> Call:
    named = {
        "old_version_table": _unless(f"{old[1]}_version", _version_of(plan, old)),
        "new_version_table": _unless(f"{new[1]}_version", _version_of(plan, new)),
        "schema": old[0],
    }
    return "rename_versioned_table", (old[1], new[1]), named


def _names(plan: TablePlan) -> dict[str, Any]:
    """What operations have to be told of: names that are not the default ones."""
    names = Names(
        transaction_table=plan.transaction.name,
        transaction_schema=plan.transaction.schema,
        transaction_column=plan.tx.name,
        end_transaction_column=plan.options.end_transaction_column_name,
        operation_column=plan.op.name,
    )
    return {key: name for key, name in names._asdict().items() if name != getattr(Names(), key)}


def _of_version_table(plan: TablePlan) -> dict[str, Any]:
    return {**_names(plan), "schema": plan.version.schema}


def _version_table(plan: TablePlan) -> dict[str, str | None]:
    version = _version_of(plan, _name_of(plan.parent))
    default = f"{plan.parent.name}_version"
    return {"version_table": _unless(default, version), "schema": plan.parent.schema}


def _unless(default: str, value: str) -> str | None:
    return None if value == default else value


def _open_index(plan: TablePlan) -> str:
    return f"uq_{plan.version.name}_open"


def _create_open_index(plan: TablePlan) -> HistoryOp:
    columns = [version.name for _, version in plan.keys]
    arguments = (_open_index(plan), plan.version.name, columns)
    named = _of_version_table(plan)
    return HistoryOp(
        ("create_open_version_index", arguments, named),
        ("drop_open_version_index", arguments, named),
    )


def _modify(
    operation: ops.ModifyTableOps, changes: Sequence[MigrateOperation]
) -> Iterator[ops.ModifyTableOps]:
    if changes:
        yield ops.ModifyTableOps(operation.table_name, changes, schema=operation.schema)


def _column_name(change: MigrateOperation) -> str | None:
    if isinstance(change, ops.AddColumnOp):
        return change.column.name
    return change.column_name if isinstance(change, ops.DropColumnOp) else None


def _has_values(column: sa.Column[Any]) -> bool:
    """Rows that are there have a value in the column as soon as it is added."""
    return column.server_default is not None or not column.nullable


def _with_sequence(operation: ops.CreateTableOp | ops.DropTableOp) -> list[MigrateOperation]:
    """A table with its sequence, which may belong to it: so it is made after it, and dropped after it."""
    arguments = (f"{operation.table_name}_id_seq",), {"schema": operation.schema}
    create = ("create_transaction_sequence", *arguments)
    drop = ("drop_transaction_sequence", *arguments)
    there, back = (create, drop) if isinstance(operation, ops.CreateTableOp) else (drop, create)
    return [HistoryOp(None, back), operation, HistoryOp(there)]


def _without_moved_keys(
    changes: Sequence[MigrateOperation], pairs: dict[Name, Name]
) -> list[MigrateOperation]:
    """``changes`` but for foreign keys that follow a renamed table by themselves."""
    new = [
        o
        for o in changes
        if isinstance(o, ops.CreateForeignKeyOp)
        and (o.kw.get("referent_schema"), o.referent_table) in pairs.values()
    ]
    old = [
        o
        for o in changes
        if isinstance(o, ops.DropConstraintOp)
        and o.constraint_type == "foreignkey"
        and any(
            (element.column.table.schema, element.column.table.name) in pairs
            for element in o.to_constraint().elements  # type: ignore[attr-defined]
        )
    ]
    moved = [*new, *old] if len(new) == len(old) else []
    return [o for o in changes if o not in moved]


def _retype(operation: ops.CreateTableOp, new_type: Callable[[Any], Any]) -> None:
    """Give the columns of a new table other types; those of the model stay as they are."""
    columns = []
    for item in operation.columns:
        column = item
        if isinstance(item, sa.Column):
            column = item._copy()
            column.type = new_type(item.type)
        columns.append(column)
    operation.columns = columns


def _plain_type(type_: Any) -> Any:
    """What a migration can name; a datetime that keeps microseconds everywhere."""
    if not isinstance(type_, sa.TypeDecorator):
        return type_
    if not isinstance(type_.impl_instance, sa.DateTime):
        return type_.impl_instance if isinstance(type_, RowKey) else type_
    plain = sa.DateTime(timezone=type_.impl_instance.timezone)
    return plain.with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _existing_enum(dialect: str, type_: Any) -> Any:
    """An enum of the parent table as a type that creates nothing.

    It is that of one database: SQLAlchemy 2.0 creates the enums that are variants of other types.
    """
    native = type_._variant_mapping.get("postgresql", type_)
    if not isinstance(native, (sa.Enum, postgresql.ENUM)) or not native.native_enum:
        return type_
    if dialect != "postgresql":
        return sa.String(getattr(type_, "length", None))
    return _ExistingEnum(*native.enums, name=native.name, schema=native.schema, create_type=False)


class _ExistingEnum(postgresql.ENUM):
    """A type whose ``create_type=False`` is rendered: SQLAlchemy 2.0 leaves it out."""

    __module__ = postgresql.ENUM.__module__  # Alembic renders it as one of these

    def __repr__(self) -> str:
        text = repr(postgresql.ENUM(*self.enums, name=self.name, schema=self.schema))
        return f"{text[:-1]}, create_type=False)"
