"""The one door for plugins: which hooks there are, and what they are given.

A plugin is a subclass of :class:`Plugin` that overrides the hooks it wants, or any object that has
all of them: :class:`Plugin` is a protocol. Hooks work on sets, as
the writing does: :meth:`Plugin.after_write` comes once per flush (or bulk statement) and
connection, with the tables that were written; what a plugin stores, it stores with SQL over those
versions::

    class LastTouched(Plugin):
        '''Keeps in the ``touched`` table which tables a transaction wrote.'''

        def after_write(self, written):
            for plan in written.tables:
                written.connection.execute(touched.insert().values(name=plan.parent.name))

A public method that is no hook is refused, and so is a hook with other arguments: a misspelled hook
would never be called. Methods of the plugin's own start with an underscore.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableSequence,
    Sequence,
)
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, overload, runtime_checkable

from .config import nearest
from .exc import ImproperlyConfigured
from .plan import ClassPlan, Key, TablePlan
from .write import TX

if TYPE_CHECKING:
    from sqlalchemy import Column, ColumnElement, Connection, CursorResult, FromClause, Table
    from sqlalchemy.orm import Session, registry

    from .manager import VersioningManager
    from .write import Writer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What one flush or one bulk statement wrote over one connection.

    :ivar manager: the manager of the models.
    :ivar session: the session that wrote; of a watched engine's connection, one that was made for it.
    :ivar connection: the connection, for statements of the plugin.
    :ivar writer: for the package itself.
    :ivar transaction_id: None if nothing is left of the transaction: all it did was taken back.
    :ivar tables: the keys of the rows that it touched, by the plan of their table; None instead of
        keys where only the database knows them. A plan has ``parent`` and ``version``, the two tables.
    :ivar amended: whether some of these rows had a version of this transaction before, which now has
        other values or another operation, or is gone.
    :ivar reconstructed: the versions do not record changes that were just made: ``backfill()`` or
        ``repair()`` wrote down what was there.
    """

    manager: VersioningManager
    session: Session
    connection: Connection
    writer: Writer
    transaction_id: int | None
    tables: Mapping[TablePlan, Sequence[Key] | None]
    amended: bool
    reconstructed: bool = False

    def keys(self, plan: TablePlan) -> Sequence[Key] | None:
        """The keys in ``tables``; None also if they are more than one statement can take."""
        keys = self.tables[plan]
        return None if keys is None or not self.writer.format(plan).fits(len(keys)) else keys

    def execute(
        self,
        plan: TablePlan,
        name: Hashable,
        build: Callable[[Callable[[FromClause], ColumnElement[bool]]], Any],
        **parameters: Any,
    ) -> CursorResult[Any]:
        """Run a statement about the versions that were written in the table of ``plan``.

        :param name: tells the statements of a plugin apart; equal names stand for equal statements.
        :param build: makes the statement, once per name, plan and database. It is given a function
            that says of ``plan.version``, or of an alias of it: this is one of the versions.
        """
        keys = self.keys(plan)

        def is_written(v: FromClause) -> ColumnElement[bool]:
            own = plan.tx_of(v) == TX
            return own if keys is None else own & self.writer.key_clause(plan, v)

        if keys is not None:
            parameters |= self.writer.key_parameters(plan, keys)
        return self.run((name, plan, keys is None), lambda: build(is_written), **parameters)

    def run(self, name: Hashable, build: Callable[[], Any], **parameters: Any) -> CursorResult[Any]:
        """Run a statement in which ``TX`` stands for the transaction's id; ``name`` as above."""
        statement = self.writer.built(("plugin", name), build)
        return self.connection.execute(
            statement, {"history__tx": self.transaction_id, **parameters}
        )


@runtime_checkable
class Plugin(Protocol):
    """The protocol of plugins, and their base: the hooks, each of which does nothing."""

    def build_classes(self, manager: VersioningManager, in_registry: registry) -> None:
        """The Transaction class was made: now is the time to make classes and tables that refer to it.

        :param in_registry: the registry that the Transaction class is mapped in.
        """
        return None

    def class_versioned(self, plan: ClassPlan) -> None:
        """A class was made versioned: it has its version table, and may not have its version class yet."""
        return None

    def version_columns(
        self, parent: Table, columns: Sequence[Column[Any]]
    ) -> Iterable[Column[Any]]:
        """Further columns for the version table of ``parent``: nullable or with a server default.

        :param columns: the columns of ``parent`` that have a history.
        """
        return ()

    def transaction_values(self, session: Session) -> Mapping[str, Any]:
        """Values for columns of the transaction row; those of a ``transaction_context`` win."""
        return {}

    def after_write(self, written: Written) -> None:
        """Versions were written, amended or taken back.

        Called once for each flush or bulk statement, and connection.
        """
        return None

    def transaction_moved(
        self, session: Session, connection: Connection, old: int, new: int | None
    ) -> None:
        """The transaction ``old`` now has the id ``new``, or is gone: let what refers to it follow.

        :param new: None if nothing is left of the transaction.
        """
        return None

    def redacted(
        self, session: Session, plan: ClassPlan, key: Key, columns: Sequence[Column[Any]]
    ) -> None:
        """Values of one object were erased from its versions: erase what this plugin keeps of them.

        :param columns: the columns of the live tables of which the values were erased.
        """
        return None


__all__ = ["HOOKS", "TX", "Plugin", "PluginCollection", "Written"]

HOOKS: Final = tuple(name for name in vars(Plugin) if not name.startswith("_"))


class PluginCollection(MutableSequence[Plugin]):
    """A list of plugins that takes nothing but plugins.

    >>> class Misspelled(Plugin):
    ...     def after_wriet(self, written): ...
    >>> PluginCollection([Misspelled()])
    Traceback (most recent call last):
        ...
    sqlalchemy_history.exc.ImproperlyConfigured: Misspelled.after_wriet: there is no such hook; \
did you mean 'after_write'? A method that is no hook starts with an underscore
    """

    def __init__(
        self, plugins: Iterable[Plugin] = (), added: Callable[[Plugin], None] | None = None
    ) -> None:
        self._plugins: list[Plugin] = []
        self._hooks: dict[str, tuple[Any, ...]] = {}
        self._added = added
        self.extend(plugins)

    def hooks(self, name: str) -> tuple[Any, ...]:
        """The bound methods of the plugins that implement the hook ``name``."""
        found = self._hooks.get(name)
        if found is None:
            nothing = getattr(Plugin, name)
            found = self._hooks[name] = tuple(
                getattr(plugin, name)
                for plugin in self._plugins
                if getattr(type(plugin), name) is not nothing
            )
        return found

    def _check(self, plugin: Any) -> None:
        _check(plugin)
        if self._added is not None:
            self._added(plugin)

    def __len__(self) -> int:
        return len(self._plugins)

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self._plugins)

    @overload
    def __getitem__(self, index: int) -> Plugin: ...
    @overload
    def __getitem__(self, index: slice) -> list[Plugin]: ...
    def __getitem__(self, index: int | slice) -> Plugin | list[Plugin]:
        return self._plugins[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        for plugin in value if isinstance(index, slice) else (value,):
            self._check(plugin)
        self._plugins[index] = value
        self._hooks.clear()

    def __delitem__(self, index: int | slice) -> None:
        del self._plugins[index]
        self._hooks.clear()

    def insert(self, index: int, value: Plugin) -> None:
        """Insert a plugin before ``index``.

        :raises ImproperlyConfigured: if it is no plugin, or has a hook that does not exist.
        """
        self._check(value)
        self._plugins.insert(index, value)
        self._hooks.clear()

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Iterable) else NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # as list has it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._plugins!r})"


def _check(plugin: Any) -> None:
    # a class has the hooks as well
    if isinstance(plugin, type) or not isinstance(plugin, Plugin):
        advice = " (an instance, not the class)" if isinstance(plugin, type) else ""
        raise ImproperlyConfigured(
            f"{plugin!r} is no plugin: give an instance of a subclass of Plugin{advice}"
        )
    name = type(plugin).__name__
    for cls in type(plugin).__mro__:
        if cls is Plugin:
            break
        for attribute, value in vars(cls).items():
            if attribute.startswith("_") or not inspect.isfunction(value):
                continue
            if attribute not in HOOKS:
                raise ImproperlyConfigured(
                    f"{name}.{attribute}: there is no such hook; {nearest(attribute, HOOKS)} "
                    f"A method that is no hook starts with an underscore"
                )
            expected = list(inspect.signature(getattr(Plugin, attribute)).parameters)
            given = list(inspect.signature(value).parameters)
            if given != expected:
                raise ImproperlyConfigured(
                    f"{name}.{attribute}({', '.join(given)}): the hook is called with "
                    f"({', '.join(expected)})"
                )
