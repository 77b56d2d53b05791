"""Options: one frozen record, merged from the defaults, the manager and ``__versioned__``.

>>> Options().merged({"strategy": "subquery"}, "make_versioned(options=)").strategy
'subquery'
>>> Options().merged({"stratgy": "subquery"}, "Article.__versioned__")
Traceback (most recent call last):
    ...
sqlalchemy_history.exc.ImproperlyConfigured: Article.__versioned__: unknown option 'stratgy'; \
did you mean 'strategy'?
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypedDict

from .exc import ImproperlyConfigured

StrategyName = Literal["validity", "subquery"]


class OptionsDict(TypedDict, total=False):
    """The keys of ``make_versioned(options=)`` and of ``__versioned__``, all optional.

    A type checker finds misspelled ones in ``__versioned__: ClassVar[OptionsDict] = {...}``.
    """

    versioning: bool
    base_classes: tuple[type, ...] | None
    table_name: str
    schema: str | None
    exclude: Iterable[str]
    include: Iterable[str]
    create_models: bool
    create_tables: bool
    transaction_column_name: str
    end_transaction_column_name: str
    operation_type_column_name: str
    strategy: StrategyName
    untracked: Literal["raise", "warn", "ignore"]
    use_module_name: bool
    support_async: bool
    indexes: Literal["default", "compatible"]
    create_composite_index: bool
    unique_open: bool
    require_context: Iterable[str]
    track_relations: Iterable[str]
    native_versioning: bool
    baseline: bool


class Options(NamedTuple):
    """What can be chosen for a manager or for one class.

    :ivar versioning: ``False`` leaves the class out.
    :ivar base_classes: bases of the version class; by default the model's declarative base.
    :ivar table_name: pattern of version table names; ``%s`` is the parent table's name.
    :ivar schema: the schema of version tables; by default that of their parents. Given for a manager,
        it is also the schema of the transaction table. On MariaDB a schema is a database, on SQLite
        an attached file.
    :ivar exclude: names of attributes that have no history.
    :ivar include: names of attributes that have one although ``exclude`` names them.
    :ivar create_models: ``False``: there are version tables, which are written, but no version
        classes. Read them with ``version_table()``; what needs version classes, upkeep too, raises
        :class:`~sqlalchemy_history.ClassNotVersioned`.
    :ivar create_tables: ``False``: the version tables are not created by ``create_all()``.
    :ivar transaction_column_name: name of the column of version tables that holds the id of the
        transaction that made the version.
    :ivar end_transaction_column_name: name of the column with the id of the transaction that ended
        the version (strategy ``validity`` alone).
    :ivar operation_type_column_name: name of the column with 0, 1 or 2, see ``Operation``.
    :ivar untracked: what to do with a write that cannot be recorded, such as SQL text: ``"raise"``,
        ``"warn"`` once for each table, or ``"ignore"``.
    :ivar strategy: ``"validity"`` stores both ends of a version, ``"subquery"`` only its start.
    :ivar use_module_name: without effect, accepted because sqlalchemy-history and
        SQLAlchemy-Continuum have it: a version class is always in the module of its model.
    :ivar support_async: ``True`` makes ``.versions`` a ``write_only`` relationship. Async sessions
        do not need it: ``session.scalars(article.versions.select())`` works either way.
    :ivar indexes: ``"default"`` is one index on ``transaction_id``; ``"compatible"`` is what
        sqlalchemy-history and SQLAlchemy-Continuum make: one index on each of the three columns.
    :ivar create_composite_index: without effect, accepted because SQLAlchemy-Continuum has it: the
        primary key serves that purpose.
    :ivar unique_open: a partial unique index that makes two open versions of one row impossible
        (validity strategy; SQLite and PostgreSQL).
    :ivar require_context: columns of the transaction row that must have a value, for example
        ``("user_id",)``. A flush that writes versions without it raises ``MissingContext``.
    :ivar track_relations: names of collections whose elements have a history. The parent gets a
        version, too, when an element is added to such a collection or removed from it.
    :ivar native_versioning: triggers write the versions, whoever writes the rows; see
        :mod:`sqlalchemy_history.native`.
    :ivar baseline: before the first change of a row without history, its old state becomes an INSERT
        version. The transaction row of such versions has the ``remote_addr`` ``"baseline"``.
    """

    versioning: bool = True
    base_classes: tuple[type, ...] | None = None
    table_name: str = "%s_version"
    schema: str | None = None
    exclude: frozenset[str] = frozenset()
    include: frozenset[str] = frozenset()
    create_models: bool = True
    create_tables: bool = True
    transaction_column_name: str = "transaction_id"
    end_transaction_column_name: str = "end_transaction_id"
    operation_type_column_name: str = "operation_type"
    strategy: StrategyName = "validity"
    untracked: Literal["raise", "warn", "ignore"] = "warn"
    use_module_name: bool = True
    support_async: bool = False
    indexes: Literal["default", "compatible"] = "default"
    create_composite_index: bool = False
    unique_open: bool = True
    require_context: frozenset[str] = frozenset()
    track_relations: frozenset[str] = frozenset()
    native_versioning: bool = False
    baseline: bool = False

    def merged(self, overrides: OptionsDict | Mapping[str, Any], where: str) -> Options:
        """These options with ``overrides`` laid over them.

        :param where: what the overrides are, for messages: ``"Article.__versioned__"``.
        :raises ImproperlyConfigured: for an unknown key or a value that makes no sense.
        """
        changes = {
            key: _checked(key, value, where)
            for key, value in overrides.items()
            if key != RECORDED_BY_PLUGIN
        }
        return self._replace(**changes) if changes else self


#: TransactionChangesPlugin leaves its class in ``__versioned__`` under this key, for users to find
RECORDED_BY_PLUGIN = "transaction_changes"

OPTION_NAMES = frozenset(Options._fields)

_CHOICES: dict[str, tuple[str, ...]] = {
    "strategy": ("validity", "subquery"),
    "untracked": ("raise", "warn", "ignore"),
    "indexes": ("default", "compatible"),
}


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` did you mean 'x'?`` where something is near, else the list of what there is."""
    import difflib  # noqa: PLC0415 - only who misspells a name needs it

    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"


def _checked(key: str, value: Any, where: str) -> Any:
    if key not in OPTION_NAMES:
        raise ImproperlyConfigured(f"{where}: unknown option {key!r}; {nearest(key, OPTION_NAMES)}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ImproperlyConfigured(
            f"{where}: {key}={value!r}; it is one of {', '.join(map(repr, _CHOICES[key]))}"
        )
    if key in ("exclude", "include", "require_context", "track_relations"):
        if isinstance(value, str):
            raise ImproperlyConfigured(f"{where}: {key}={value!r}; give a list of names")
        return frozenset(value or ())
    if key == "base_classes":
        return tuple(value) if value else None
    if key == "table_name" and (not isinstance(value, str) or value.count("%s") != 1):
        raise ImproperlyConfigured(
            f"{where}: table_name={value!r}; it is a pattern with one '%s', such as '%s_version'"
        )
    return value
