"""Laws of the context: who and why, what is required, what is left out, what is tracked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from sqlalchemy_history import (
    ImproperlyConfigured,
    MissingContext,
    TransactionBase,
    TransactionFactory,
    transaction_context,
    vacuum,
    verify,
    versioning_disabled,
)
from sqlalchemy_history.context import current_context
from sqlalchemy_history.plugins import Plugin


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def remote_addrs(session: Any, versioning: Any) -> list[str | None]:
    cls = versioning.transaction_cls
    return list(session.scalars(sa.select(cls.remote_addr).order_by(cls.id)))


def names(session: Any, table: str = "article_version") -> list[tuple[Any, ...]]:
    order = "transaction_id, id"
    found = session.execute(sa.text(f"SELECT operation_type, name FROM {table} ORDER BY {order}"))
    return [tuple(row) for row in found]


# -- transaction_context


def test_values_are_columns_of_each_transaction_made_inside(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """Every commit inside the block gets the values, one after it does not."""
    session = open_session()
    with transaction_context(remote_addr="10.0.0.7"):
        session.add(article := Article(name="a"))
        session.commit()
        article.name = "b"
        session.commit()
    article.name = "c"
    session.commit()
    assert remote_addrs(session, versioning) == ["10.0.0.7", "10.0.0.7", None]


def test_inner_context_wins_and_ends() -> None:
    """Nested contexts add up; the inner value wins, and is gone when its block is left."""
    with transaction_context(remote_addr="outer", user_id=1):
        with pytest.raises(KeyError), transaction_context(remote_addr="inner"):  # noqa: PT012
            assert dict(current_context()) == {"remote_addr": "inner", "user_id": 1}
            raise KeyError
        assert dict(current_context()) == {"remote_addr": "outer", "user_id": 1}
    assert dict(current_context()) == {}


def test_context_decorates_functions_and_coroutine_functions(run_async: Any) -> None:
    """A decorated function runs inside the context; a coroutine function stays one."""

    @transaction_context(remote_addr="job")
    def job() -> Any:
        return current_context()["remote_addr"]

    @transaction_context(remote_addr="task")
    async def task() -> Any:
        await asyncio.sleep(0)
        return current_context()["remote_addr"]

    assert inspect.iscoroutinefunction(task)
    assert [job(), job(), run_async(task)] == ["job", "job", "task"]
    assert dict(current_context()) == {}


def test_context_decorates_functions_that_pass_a_coroutine_on(run_async: Any) -> None:
    """The coroutine that a plain function returns runs inside the context."""

    async def task() -> Any:
        await asyncio.sleep(0)
        return current_context()["remote_addr"]

    def retried() -> Any:
        return task()

    assert run_async(transaction_context(remote_addr="task")(retried)()) == "task"


def test_what_runs_after_the_call_is_not_decorated() -> None:
    """Decorating a generator function, also a partial one, or a class is an error with advice."""

    def rows() -> Any:
        yield 1

    class Rows:
        pass

    for thing in (rows, functools.partial(rows), Rows):
        with pytest.raises(TypeError, match=r"[rR]ows.*inside of it"):
            transaction_context(remote_addr="x")(thing)


def test_tasks_inherit_the_context_and_keep_their_own(run_async: Any) -> None:
    """What a task enters does not leak into its siblings, however they interleave."""

    async def work(name: str) -> tuple[Any, Any]:
        before = dict(current_context())
        async with transaction_context(remote_addr=name):
            await asyncio.sleep(0)
            return before, current_context()["remote_addr"]

    async def main() -> Any:
        async with transaction_context(user_id=1):
            return await asyncio.gather(*(work(f"{i}") for i in range(5)))

    assert run_async(main) == [({"user_id": 1}, f"{i}") for i in range(5)]


def test_one_context_object_in_many_threads() -> None:
    """Threads see nothing of each other, also if they enter one object at the same time."""
    context = transaction_context(remote_addr="shared")
    barrier = threading.Barrier(4)

    def work() -> list[Any]:
        seen: list[Any] = []
        for _ in range(50):
            seen.append(dict(current_context()))
            barrier.wait()
            with context:
                barrier.wait()
                seen.append(dict(current_context()))
        return seen

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for seen in pool.map(lambda _: work(), range(4)):
            assert seen == [{}, {"remote_addr": "shared"}] * 50


def test_unknown_name_is_an_error_that_names_the_nearest(Article: Any, open_session: Any) -> None:
    """A value for a column that there is not raises, and nothing of the flush stays."""
    session = open_session()
    session.add(Article(name="a"))
    with (
        transaction_context(remote_adr="10.0.0.7"),
        pytest.raises(
            ImproperlyConfigured, match=r"transaction_context.*'remote_adr'.*'remote_addr'"
        ),
    ):
        session.commit()
    session.rollback()
    assert session.scalars(sa.select(Article)).all() == []


def test_id_of_a_transaction_cannot_be_set(Article: Any, open_session: Any) -> None:
    """The database gives ids; a second transaction of the context would have the same one."""
    session = open_session()
    session.add(Article(name="a"))
    with (
        transaction_context(id=5),
        pytest.raises(ImproperlyConfigured, match=r"id=5.*there are: issued_at"),
    ):
        session.commit()


def test_function_is_asked_when_a_transaction_is_made(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """A function as value is called for each transaction row, and for none if there is none."""
    session = open_session()
    numbers = iter("12")
    with transaction_context(remote_addr=lambda: next(numbers)):
        for name in ("a", "b"):
            session.add(Article(name=name))
            session.commit()
            session.commit()
    assert remote_addrs(session, versioning) == ["1", "2"]


def test_session_info_says_it_for_one_session(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """session.info holds values for the transactions of that session; a block around wins."""
    session = open_session(info={"transaction_context": {"remote_addr": "session"}})
    session.add(Article(name="a"))
    session.commit()
    with transaction_context(remote_addr="block"):
        session.add(Article(name="b"))
        session.commit()
    other = open_session()
    other.add(Article(name="c"))
    other.commit()
    assert remote_addrs(session, versioning) == ["session", "block", None]


def test_plugin_says_it_where_nobody_else_does(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """transaction_values() of a plugin counts less than session.info and than the context."""

    class Host(Plugin):
        def transaction_values(self, session: Any) -> Any:
            return {"remote_addr": "plugin"}

    versioning.plugins = [Host()]
    session = open_session()
    session.add(Article(name="a"))
    session.commit()
    session.info["transaction_context"] = {"remote_addr": "session"}
    session.add(Article(name="b"))
    session.commit()
    assert remote_addrs(session, versioning) == ["plugin", "session"]


def test_columns_of_a_transaction_class_of_ones_own(
    versioning: Any, Base: Any, open_session: Any
) -> None:
    """Values are attributes of the user's Transaction class, whatever the column's name is."""

    class Transaction(TransactionBase, Base):
        __tablename__ = "tx"
        reason: Mapped[str | None] = mapped_column("why", sa.String(200))

    versioning.transaction_cls = Transaction

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)

    session = open_session()
    with transaction_context(reason="spring cleaning"):
        session.add(note := Note())
        session.commit()
    assert note.versions[0].transaction.reason == "spring cleaning"


def test_columns_of_a_transaction_have_their_defaults(
    versioning: Any, Base: Any, open_session: Any
) -> None:
    """Values, functions, SQL and the server's: whichever way the transaction is begun."""

    class Transaction(TransactionBase, Base):
        __tablename__ = "transaction"
        host: Mapped[str | None] = mapped_column(sa.String(9), default="h")
        node: Mapped[str | None] = mapped_column(sa.String(9), default=lambda: "n")
        kind: Mapped[str | None] = mapped_column(sa.String(9), default=sa.func.upper("k"))
        zone: Mapped[str | None] = mapped_column(sa.String(9), server_default="z")

    versioning.transaction_cls = Transaction

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(sa.String(9))

    session = open_session()
    session.add(note := Note(text="a"))
    session.commit()
    for text in ("b", sa.func.upper("c")):
        note.text = text
        session.commit()
    session.execute(sa.update(Note).values(text="d"))
    session.commit()
    session.execute(sa.update(Note.__table__).values(text="e"))
    session.commit()
    rows = session.scalars(sa.select(Transaction)).all()
    assert [(tx.host, tx.node, tx.kind, tx.zone) for tx in rows] == [("h", "n", "K", "z")] * 5


def test_async_session_sees_the_context(
    versioning: Any, Base: Any, open_async_session: Any, run_async: Any
) -> None:
    """What async with says reaches the flush, which runs in a greenlet."""

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)

    async def main() -> Any:
        session = await open_async_session()
        async with transaction_context(remote_addr="async"):
            session.add(Note())
            await session.commit()
        return (await session.scalars(sa.select(versioning.transaction_cls.remote_addr))).all()

    assert run_async(main) == ["async"]


# -- require_context


@pytest.mark.options(require_context=("remote_addr",))
@pytest.mark.orm_capture(reason="require_context is asked of sessions")
def test_versioned_flush_without_required_context_is_refused(
    Article: Any, open_session: Any
) -> None:
    """A flush that writes a version raises and leaves nothing; with the value it goes through."""
    session = open_session()
    session.add(Article(name="a"))
    with pytest.raises(MissingContext, match=r"article.*remote_addr.*transaction_context"):
        session.commit()
    session.rollback()
    with transaction_context(remote_addr="x"):
        session.add(article := Article(name="b"))
        session.commit()
    article.name = "b"
    session.commit()
    assert names(session) == [(0, "b")]


@pytest.mark.options(require_context=("remote_addr",))
@pytest.mark.orm_capture(reason="require_context is asked of sessions")
def test_unversioned_flush_needs_no_context(
    versioning: Any, Article: Any, Base: Any, open_session: Any
) -> None:
    """What has no history needs no author."""

    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    session = open_session()
    session.add(Plain())
    session.commit()
    assert session.scalars(sa.select(Plain)).one()


@pytest.mark.options(require_context=("remote_addr",))
@pytest.mark.orm_capture(reason="require_context is asked of sessions")
def test_required_value_may_be_set_on_the_transaction(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """A Transaction object made by hand may hold what is required."""
    session = open_session()
    tx = versioning.unit_of_work(session).create_transaction(session)
    tx.remote_addr = "hand"
    session.add(Article(name="a"))
    session.commit()
    assert remote_addrs(session, versioning) == ["hand"]


@pytest.mark.options(require_context=("remote_addr",))
@pytest.mark.orm_capture(reason="require_context is asked of sessions")
def test_bulk_statement_without_required_context_is_refused(
    Article: Any, open_session: Any
) -> None:
    """A bulk statement is refused as a flush is."""
    session = open_session()
    with transaction_context(remote_addr="x"):
        session.add(Article(name="a"))
        session.commit()
    with pytest.raises(MissingContext):
        session.execute(sa.update(Article).values(name="b"))


@pytest.mark.options(require_context=("remote_adr",))
@pytest.mark.orm_capture(reason="require_context is asked of sessions")
def test_required_context_must_be_a_column(Article: Any, open_session: Any) -> None:
    """A misspelled name is an error that names the nearest column."""
    session = open_session()
    session.add(Article(name="a"))
    with pytest.raises(ImproperlyConfigured, match=r"require_context.*'remote_addr'"):
        session.commit()


# -- versioning_disabled


@pytest.mark.orm_capture(reason="triggers record also what is disabled for a session")
def test_nothing_in_the_block_is_recorded(Article: Any, versioning: Any, open_session: Any) -> None:
    """Only what was changed before and after the block has versions, whenever it was flushed."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    with versioning_disabled(session):
        article.name = "silent"
        session.add(Article(name="never"))
        session.execute(sa.update(Article).where(Article.name == "never").values(name="bulk"))
        with versioning_disabled(session):
            session.flush()
        article.name = "silent too"
    article.name = "b"
    session.commit()
    assert names(session) == [(0, "b")]
    article.name = "c"
    session.commit()
    assert names(session) == [(0, "b"), (1, "c")]


def test_block_left_by_an_exception_records_again(Article: Any, open_session: Any) -> None:
    """After an exception versioning is on, and another session was never concerned."""
    session, other = open_session(), open_session()
    with pytest.raises(KeyError), versioning_disabled(session):  # noqa: PT012
        other.add(Article(name="other"))
        other.commit()
        raise KeyError
    session.add(Article(name="mine"))
    session.commit()
    assert names(session) == [(0, "other"), (0, "mine")]


@pytest.mark.orm_capture(reason="triggers record also what is disabled for a session")
def test_versioning_disabled_for_an_async_session(
    versioning: Any, Base: Any, open_async_session: Any, run_async: Any
) -> None:
    """``async with versioning_disabled(session)`` does the same for an AsyncSession."""

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))

    async def main() -> Any:
        session = await open_async_session()
        with pytest.raises(TypeError, match="async with"), versioning_disabled(session):
            pass
        async with versioning_disabled(session):
            session.add(Note(name="silent"))
        session.add(Note(name="told"))
        await session.commit()
        return [n for (n,) in await session.execute(sa.text("SELECT name FROM note_version"))]

    assert run_async(main) == ["told"]


# -- track_relations


@pytest.fixture
def blog(versioning: Any, Base: Any) -> Any:
    links = sa.Table(
        "article_tag",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"track_relations": ["comments", "tags"]}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))
        comments: Mapped[list[Any]] = relationship("Comment", back_populates="article")
        tags: Mapped[list[Any]] = relationship("Tag", secondary=links)

    class Comment(Base):
        __tablename__ = "comment"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))
        article_id: Mapped[int | None] = mapped_column(sa.ForeignKey("article.id"))
        article: Mapped[Any] = relationship("Article", back_populates="comments")

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return SimpleNamespace(Article=Article, Comment=Comment, Tag=Tag)


def operations(session: Any, obj: Any) -> list[int]:
    session.expire_all()
    return [version.operation_type for version in obj.versions]


@pytest.mark.parametrize("how", ["collection", "foreign key", "bulk", "delete", "many-to-many"])
@pytest.mark.orm_capture(reason="track_relations is about what sessions do")
def test_change_of_a_tracked_collection_makes_a_version_of_the_parent(
    blog: Any, open_session: Any, how: str
) -> None:
    """An element more or less gives the parent an UPDATE version, whatever made the change."""
    session = open_session()
    article, comment, tag = blog.Article(name="a"), blog.Comment(name="c"), blog.Tag(name="t")
    other = blog.Article(name="o")
    session.add_all([article, other, comment, tag])
    if how == "delete":
        comment.article = article
    session.commit()
    if how == "collection":
        article.comments.append(comment)
    elif how == "foreign key":
        comment.article_id = article.id
    elif how == "bulk":
        session.execute(sa.update(blog.Comment).values(article_id=article.id))
    elif how == "delete":
        session.delete(comment)
    else:
        article.tags.append(tag)
    session.commit()
    assert operations(session, article) == [0, 1]
    assert operations(session, other) == [0]
    assert article.versions[1].transaction_id == article.versions[1].transaction.id


@pytest.mark.orm_capture(reason="track_relations is about what sessions do")
def test_element_that_moves_makes_a_version_of_both_parents(blog: Any, open_session: Any) -> None:
    """The old parent and the new one get a version; a change inside an element makes none."""
    session = open_session()
    one, two = blog.Article(name="1"), blog.Article(name="2")
    comment = blog.Comment(name="c", article=one)
    session.add_all([one, two, comment])
    session.commit()
    comment.name = "d"
    session.commit()
    assert (operations(session, one), operations(session, two)) == ([0], [0])
    comment.article = two
    session.commit()
    assert (operations(session, one), operations(session, two)) == ([0, 1], [0, 1])


@pytest.mark.orm_capture(reason="track_relations is about what sessions do")
def test_tracked_version_is_none_too_many(blog: Any, open_session: Any) -> None:
    """A version that is there for a collection says what the one before said; it is wanted."""
    session = open_session()
    session.add(article := blog.Article(name="a"))
    session.commit()
    article.comments.append(blog.Comment())
    session.commit()
    assert operations(session, article) == [0, 1]
    assert verify(session, blog.Article) == []
    assert vacuum(session, blog.Article) == 0


@pytest.mark.orm_capture(reason="track_relations is about what sessions do")
def test_tracked_version_outlives_a_change_of_the_parent_that_comes_to_nothing(
    blog: Any, open_session: Any
) -> None:
    """A->B->A of the parent's own column does not take back the version for the collection."""
    session = open_session()
    session.add(article := blog.Article(name="a"))
    session.commit()
    article.comments.append(blog.Comment(name="c"))
    session.flush()
    article.name = "b"
    session.flush()
    article.name = "a"
    session.commit()
    assert operations(session, article) == [0, 1]


@pytest.mark.orm_capture(reason="track_relations is about what sessions do")
def test_tracked_collection_that_is_as_before_makes_no_version(
    blog: Any, versioning: Any, open_session: Any
) -> None:
    """An element that came and went in one transaction leaves the parent as it was."""
    session = open_session()
    session.add_all([article := blog.Article(name="a"), tag := blog.Tag(name="t")])
    session.commit()
    article.tags.append(tag)
    session.flush()
    article.tags.remove(tag)
    session.commit()
    assert operations(session, article) == [0]
    cls = versioning.transaction_cls
    assert session.scalar(sa.select(sa.func.count()).select_from(cls)) == 1


@pytest.mark.parametrize(
    ("names_", "message"),
    [(["comment"], "'comment'.*did you mean 'comments'"), (["author"], "'author'.*no collection")],
)
@pytest.mark.orm_capture(reason="track_relations is about what sessions do")
def test_tracked_relation_must_be_a_collection(
    versioning: Any, Base: Any, names_: list[str], message: str
) -> None:
    """A name that is no collection fails when mappers configure."""

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"track_relations": names_}
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int | None] = mapped_column(sa.ForeignKey("comment.id"))
        author: Mapped[Any] = relationship("Comment", foreign_keys=author_id)
        comments: Mapped[list[Any]] = relationship(
            "Comment", foreign_keys="Comment.article_id", viewonly=True
        )

    class Comment(Base):
        __tablename__ = "comment"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        article_id: Mapped[int | None]

    Comment.__table__.append_constraint(
        sa.ForeignKeyConstraint(["article_id"], ["article.id"], use_alter=True)
    )
    with pytest.raises(ImproperlyConfigured, match=message):
        sa.orm.configure_mappers()


@pytest.mark.orm_capture(reason="track_relations is about what sessions do")
def test_elements_of_a_tracked_collection_must_have_a_history(versioning: Any, Base: Any) -> None:
    """A collection of an unversioned class is refused with advice."""

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"track_relations": ["comments"]}
        id: Mapped[int] = mapped_column(primary_key=True)
        comments: Mapped[list[Any]] = relationship("Comment")

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        article_id: Mapped[int] = mapped_column(sa.ForeignKey("article.id"))

    with pytest.raises(ImproperlyConfigured, match=r"Article.*'comments'.*give Comment"):
        sa.orm.configure_mappers()


def test_factory_without_remote_addr_knows_no_such_value(
    versioning: Any, Base: Any, open_session: Any
) -> None:
    """The error for a column that was left out lists what there is."""
    versioning.transaction_cls = TransactionFactory(remote_addr=False)

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)

    session = open_session()
    session.add(Note())
    with (
        transaction_context(remote_addr="x"),
        pytest.raises(ImproperlyConfigured, match="there are: issued_at"),
    ):
        session.commit()
