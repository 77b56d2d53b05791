"""``as_of()``, ``versions_between()`` and ``time_machine()``."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, aliased
from typing_extensions import assert_type

from sqlalchemy_history import TransactionBase, as_of, time_machine, version_class, versions_between

from .models import Article, Note, Page

if TYPE_CHECKING:
    from .models import ArticleVersion


def as_of_a_model(session: Session) -> None:
    """as_of() of a class selects its versions; the statement goes on as any other."""
    statement = as_of(Article, 7).where(version_class(Article).name == "a").limit(5)
    assert_type(session.scalars(statement).all(), Sequence[ArticleVersion])
    assert_type(session.execute(statement).scalars().first(), ArticleVersion | None)


def as_of_a_version_class(session: Session) -> None:
    """So it is of a version class, and of an alias of one."""
    cls = version_class(Article)
    assert_type(session.scalars(as_of(cls, 7)).all(), Sequence[ArticleVersion])
    assert_type(session.scalars(as_of(aliased(cls), 7)).all(), Sequence[ArticleVersion])


def as_of_a_statement(session: Session) -> None:
    """as_of() of a statement leaves its type as it is."""
    cls = version_class(Article)
    assert_type(session.scalars(as_of(select(cls), 7)).one(), ArticleVersion)
    id_, name = session.execute(as_of(select(cls.id, cls.name), 7)).one()._tuple()
    assert_type(id_, int)
    assert_type(name, str)


def as_of_others(session: Session) -> None:
    """Of models that do not tell, the statement gives anything."""
    assert_type(session.scalars(as_of(Note, 7)).one(), Any)
    assert_type(session.scalars(as_of(Page, 7)).one(), Any)


def moments(transaction: TransactionBase, version: ArticleVersion) -> None:
    """A moment is a transaction, its id, a version or a datetime; nothing else."""
    as_of(Article, transaction)
    as_of(Article, version)
    as_of(Article, dt.datetime.now(dt.timezone.utc))
    as_of(Article, "yesterday")  # type: ignore[call-overload]  # the law itself


def between(session: Session) -> None:
    """versions_between() selects versions as as_of() does."""
    found = session.scalars(versions_between(Article, 1, 5)).all()
    assert_type(found, Sequence[ArticleVersion])


def time_machines(engine: Engine) -> None:
    """time_machine() gives a Session."""
    with time_machine(engine, 7) as past:
        assert_type(past, Session)


async def async_time_machines(engine: AsyncEngine) -> None:
    """Or an AsyncSession."""
    async with time_machine(engine, 7) as past:
        assert_type(past, AsyncSession)
