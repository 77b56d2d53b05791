"""Options, managers, plugins and contexts."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Table
from sqlalchemy.orm import Session, registry
from typing_extensions import assert_type

from sqlalchemy_history import (
    OptionsDict,
    VersioningManager,
    make_versioned,
    transaction_context,
    versioning_manager,
)
from sqlalchemy_history.plugins import Plugin, TransactionMetaPlugin, Written


def options() -> None:
    """Options are a TypedDict, wherever they are given."""
    chosen: OptionsDict = {"strategy": "subquery", "exclude": ["name"], "baseline": True}
    make_versioned(options=chosen)
    VersioningManager(options={"table_name": "%s_history"})
    versioning_manager.options = {"native_versioning": True}
    assert_type(versioning_manager.options.strategy == "validity", bool)


def misspelled_options() -> None:
    """A misspelled key and a wrong value are found."""
    make_versioned(options={"stratgy": "subquery"})  # type: ignore[arg-type]  # the law itself
    make_versioned(options={"strategy": "both"})  # type: ignore[arg-type]  # the law itself


class Counting(Plugin):
    """A plugin overrides what it needs."""

    def __init__(self) -> None:
        self.count = 0

    def after_write(self, written: Written) -> None:
        self.count += len(written.tables)


class WrongHook(Plugin):
    """A hook with other arguments is found."""

    def after_write(self, session: Session) -> None:  # type: ignore[override]  # the law itself
        """Count."""


class Independent:
    """A plugin need not inherit: it is one if it has all the hooks."""

    def build_classes(self, manager: VersioningManager, in_registry: registry) -> None: ...

    def class_versioned(self, plan: Any) -> None: ...

    def version_columns(
        self, parent: Table, columns: Sequence[Column[Any]]
    ) -> Iterable[Column[Any]]:
        return [Column("seen")]

    def transaction_values(self, session: Session) -> Mapping[str, Any]:
        return {"remote_addr": "cron"}

    def after_write(self, written: Written) -> None: ...

    def transaction_moved(
        self, session: Session, connection: Connection, old: int, new: int | None
    ) -> None: ...

    def redacted(
        self, session: Session, plan: Any, key: Any, columns: Sequence[Column[Any]]
    ) -> None: ...


def plugins() -> None:
    """Plugins are taken where they are asked for, and nothing else is."""
    make_versioned(plugins=[Counting(), Independent(), TransactionMetaPlugin()])
    versioning_manager.plugins.append(Counting())
    assert_type(versioning_manager.plugins[0], Plugin)
    make_versioned(plugins=[object()])  # type: ignore[list-item]  # the law itself
    make_versioned(plugins=[Counting])  # type: ignore[list-item]  # an instance is wanted


@transaction_context(remote_addr="cron")
def job(count: int) -> str:
    """A decorated function keeps its type."""
    return "done" * count


assert_type(job(1), str)
