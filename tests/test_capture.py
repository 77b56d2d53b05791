"""What the unit of work changes is recorded: once, exactly, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import (
    Session,
    mapped_column,
)

from chain import DELETE, INSERT, UPDATE, count_transactions, laws

__all__ = ["laws"]

sqlite_only = pytest.mark.backends("sqlite")


# Net effect: (before, steps, what is recorded). A step is a value to have, or None: no row.
NET: list[tuple[Any, list[Any], int | None]] = [
    (None, ["a"], INSERT),
    (None, ["a", "b"], INSERT),
    (None, ["a", "b", "c"], INSERT),
    (None, ["a", None], None),
    (None, ["a", "b", None], None),
    (None, ["a", None, "b"], INSERT),
    (None, ["a", None, "b", "c"], INSERT),
    (None, ["a", None, "b", None], None),
    (None, ["a", "b", None, "c", None, "d"], INSERT),
    ("a", ["b"], UPDATE),
    ("a", ["b", "c"], UPDATE),
    ("a", ["a"], None),
    ("a", ["b", "a"], None),
    ("a", ["b", "c", "a"], None),
    ("a", ["b", "a", "c"], UPDATE),
    ("a", ["b", "a", "b", "a"], None),
    ("a", [None], DELETE),
    ("a", ["b", None], DELETE),
    ("a", ["b", "c", None], DELETE),
    ("a", [None, "a"], None),
    ("a", [None, "b"], UPDATE),
    ("a", ["b", None, "a"], None),
    ("a", ["b", None, "b"], UPDATE),
    ("a", [None, "b", "a"], None),
    ("a", [None, "b", "c"], UPDATE),
    ("a", [None, "b", None], DELETE),
    ("a", [None, "a", None], DELETE),
    ("a", ["b", None, "c", None], DELETE),
    ("a", [None, "a", None, "a"], None),
    ("a", ["b", "a", None], DELETE),
    ("a", ["b", "a", None, "b"], UPDATE),
]


def simple(base: type[Any]) -> tuple[type[Any], Callable[[int], dict[str, Any]]]:
    class Article(base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(20))
        rank = mapped_column(sa.Integer, server_default="7")

    return Article, lambda n: {"id": n}


def natural(base: type[Any]) -> tuple[type[Any], Callable[[int], dict[str, Any]]]:
    class Country(base):
        __tablename__ = "country"
        __versioned__ = {}
        code = mapped_column(sa.String(20), primary_key=True)
        name = mapped_column(sa.String(20))

    return Country, lambda n: {"code": f"key {n}"}


def composite(base: type[Any]) -> tuple[type[Any], Callable[[int], dict[str, Any]]]:
    class Cell(base):
        __tablename__ = "cell"
        __versioned__ = {}
        row = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        column = mapped_column(sa.String(10), primary_key=True)
        name = mapped_column(sa.String(20))

    return Cell, lambda n: {"row": n // 2, "column": "ab"[n % 2]}


def joined(base: type[Any]) -> tuple[type[Any], Callable[[int], dict[str, Any]]]:
    class Item(base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        kind = mapped_column(sa.String(10))
        title = mapped_column(sa.String(20), default="title")
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        name = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_identity": "book"}

    return Book, lambda n: {"id": n}


def joined_base_column(base: type[Any]) -> tuple[type[Any], Callable[[int], dict[str, Any]]]:
    """The value that changes is in the base table."""

    class Item(base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        kind = mapped_column(sa.String(10))
        name = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        pages = mapped_column(sa.Integer, default=3)
        __mapper_args__ = {"polymorphic_identity": "book"}

    return Book, lambda n: {"id": n}


MODELS = [simple, natural, composite, joined, joined_base_column]


def find(session: Session, cls: type[Any], key: dict[str, Any]) -> Any:
    names = [column.key for column in sa.inspect(cls).primary_key]
    return session.get(cls, tuple(key[name] for name in names))


def set_value(session: Session, cls: type[Any], key: dict[str, Any], value: Any) -> None:
    obj = find(session, cls, key)
    if value is None:
        session.delete(obj)
    elif obj is None:
        session.add(cls(**key, name=value))
    else:
        obj.name = value


@contextlib.contextmanager
def flushed(session: Session, cls: type[Any], key: dict[str, Any]) -> Iterator[None]:
    yield
    session.flush()


@contextlib.contextmanager
def released(session: Session, cls: type[Any], key: dict[str, Any]) -> Iterator[None]:
    with session.begin_nested():
        yield


@contextlib.contextmanager
def expired(session: Session, cls: type[Any], key: dict[str, Any]) -> Iterator[None]:
    session.expire_all()
    yield
    session.flush()
    session.expire_all()


@contextlib.contextmanager
def forgotten(session: Session, cls: type[Any], key: dict[str, Any]) -> Iterator[None]:
    yield
    session.flush()
    session.expunge_all()


@contextlib.contextmanager
def disturbed(session: Session, cls: type[Any], key: dict[str, Any]) -> Iterator[None]:
    """Before the step, savepoints with other changes are rolled back."""
    there = find(session, cls, key) is not None
    for noise in ("noise", None) if there else ("noise",):
        savepoint = session.begin_nested()
        set_value(session, cls, key, noise)
        session.flush()
        savepoint.rollback()
    with session.begin_nested():
        yield


def record_net_effects(session: Session, cls: type[Any], key_of: Any, step: Any) -> None:
    """Take each case of `NET` through its steps, a transaction each, and compare the histories."""
    with session.begin():
        for n, (before, _, _) in enumerate(NET):
            if before is not None:
                session.add(cls(**key_of(n), name=before))
    for n, (_, steps, _) in enumerate(NET):
        with session.begin():
            for value in steps:
                with step(session, cls, key_of(n)):
                    set_value(session, cls, key_of(n), value)
    for n, (before, steps, expected) in enumerate(NET):
        what = f"{before!r} -> {steps}"
        versions = history_of(session, cls, key_of(n))
        if before is not None:
            assert versions.pop(0) == (INSERT, before), what
        if expected is None:
            assert versions == [], what
        elif expected == DELETE:
            assert [operation for operation, _ in versions] == [DELETE], what
        else:
            assert versions == [(expected, steps[-1])], what
    made = 1 + sum(expected is not None for *_, expected in NET)
    assert count_transactions(session, cls) == made


def history_of(session: Session, cls: type[Any], key: dict[str, Any]) -> list[tuple[Any, ...]]:
    """`(operation, name)` of the versions of one row, in order."""
    version = cls.__versioning_manager__.version_class_map[cls]
    return [
        (one.operation_type, one.name)
        for one in session.scalars(
            sa.select(version).filter_by(**key).order_by(version.transaction_id)
        )
    ]


@sqlite_only
@pytest.mark.parametrize("step", [flushed, released, expired, forgotten, disturbed])
@pytest.mark.parametrize("model", MODELS)
def test_one_version_with_the_net_effect(versioning, Base, open_session, laws, model, step) -> None:
    """Whatever a transaction did to a row: one version with the net effect, none if there is none.

    In several flushes, in released savepoints, with expired and with forgotten objects, and with
    savepoints between that are rolled back.
    """
    laws.repeats = True
    cls, key_of = model(Base)
    record_net_effects(open_session(), cls, key_of, step)


@pytest.mark.backends("postgresql", "mariadb")
@pytest.mark.parametrize("step", [flushed, disturbed])
@pytest.mark.parametrize("model", [simple, composite, joined])
def test_one_version_with_the_net_effect_on_servers(
    versioning, Base, open_session, laws, model, step
) -> None:
    """The net effect is the same on every database."""
    laws.repeats = True
    cls, key_of = model(Base)
    record_net_effects(open_session(), cls, key_of, step)
