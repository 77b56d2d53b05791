"""What is measured: plain functions over :class:`.Bench` and a size.

Each sets up, does the work inside ``bench.clock()``, and returns the version rows that the work
must leave, or nothing where no rows are to be checked. W1 to W14 write, R1 to R5 read; the
numbers of those that write are those of the project's goals, which have no W6 and W7.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import func, literal, select, update
from sqlalchemy.orm import Session, configure_mappers

from benchmarks.bench import Bench, Rows
from benchmarks.contenders import DELETE, INSERT, UPDATE, Changed
from benchmarks.models import WIDE_COLUMNS, declare_many

Function = Callable[[Bench, int], "Rows | None"]
F = TypeVar("F", bound=Function)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A function with its sizes and what may be counted of it.

    ``flushes`` (of the size) and ``tables`` (versioned tables touched by each) make the budget of
    added statements; ``budget``, where given, is that number itself. ``rounds`` multiplies the
    repetitions of what is short; ``fresh`` asks for a new process each time; ``memory`` for a run
    under tracemalloc; ``timed`` is False where that is all that is measured.
    """

    name: str
    title: str
    function: Function
    size: int
    short: int
    flushes: Callable[[int], int] = lambda n: 1
    tables: int = 1
    budget: int | None = None
    rounds: int = 1
    fresh: bool = False
    memory: bool = False
    timed: bool = True

    def statements(self, size: int, database: str) -> int | None:
        """How many statements a contender may add to those of plain; None: no limit."""
        if self.fresh:
            return None
        if self.budget is not None:
            return self.budget
        each = 1 if database == "postgresql" else 1 + 2 * self.tables
        return self.flushes(size) * each


WORKLOADS: dict[str, Workload] = {}


def workload(name: str, title: str, *, size: int, short: int, **more: Any) -> Callable[[F], F]:
    """Register the decorated function."""

    def register(function: F) -> F:
        WORKLOADS[name] = Workload(
            name=name, title=title, function=function, size=size, short=short, **more
        )
        return function

    return register


# Rows


def item(number: int) -> dict[str, Any]:
    body = f"the body of item {number}, which is a sentence long"
    return {"title": f"item {number}", "body": body, "score": number, "price": number / 4}


def items(count: int) -> list[dict[str, Any]]:
    return [item(number) for number in range(count)]


def loaded(session: Session, model: Any) -> list[Any]:
    return list(session.scalars(select(model).order_by(model.id)))


# Writing


@workload("W1", "insert objects, one commit", size=10_000, short=200)
def insert_objects(bench: Bench, n: int) -> Rows:
    bench.empty()
    with bench.session() as session, bench.clock():
        objects = [bench.models.Item(**item(number)) for number in range(n)]
        session.add_all(objects)
        bench.commit(session, inserted=objects)
    return {"transaction": {"insert": 1}, "item": {"insert": n}}


@workload("W2", "update one column of loaded objects", size=10_000, short=200)
def update_objects(bench: Bench, n: int) -> Rows:
    bench.fill(item=items(n))
    with bench.session() as session:
        objects = loaded(session, bench.models.Item)
        with bench.clock():
            for instance in objects:
                instance.score += 1
            bench.commit(session, updated=objects)
    return {"transaction": {"insert": 1}, "item": {"update": n, "closed": n}}


@workload("W3", "transactions of one insert or update", size=1_000, short=40, flushes=lambda n: n)
def small_transactions(bench: Bench, n: int) -> Rows:
    """Each in a session of its own, as a web request does it; updates load the object first."""
    Item = bench.models.Item
    bench.fill(item=items(n))
    with bench.clock():
        for number in range(n):
            with bench.session() as session:
                if number % 2:
                    instance = session.get_one(Item, number)
                    instance.score += 1
                    bench.commit(session, updated=[instance])
                else:
                    instance = Item(**item(number))
                    session.add(instance)
                    bench.commit(session, inserted=[instance])
    half = n // 2
    rows = {"insert": n - half, "update": half, "closed": half}
    return {"transaction": {"insert": n}, "item": rows}


@workload("W4", "delete objects", size=5_000, short=100)
def delete_objects(bench: Bench, n: int) -> Rows:
    bench.fill(item=items(n))
    with bench.session() as session:
        objects = loaded(session, bench.models.Item)
        with bench.clock():
            for instance in objects:
                session.delete(instance)
            bench.commit(session, deleted=objects)
    return {"transaction": {"insert": 1}, "item": {"delete": n, "closed": n}}


@workload("W5", "parents, 3 children and 2 links each", size=500, short=30, tables=3)
def insert_graph(bench: Bench, n: int) -> Rows:
    models = bench.models
    bench.fill(tag=[{"name": f"tag {number}"} for number in range(50)])
    with bench.session() as session:
        tags = loaded(session, models.Tag)
        with bench.clock():
            articles = [
                models.Article(
                    title=f"article {number}",
                    comments=[models.Comment(body=f"comment {c}") for c in range(3)],
                    tags=[tags[number % 50], tags[(number + 7) % 50]],
                )
                for number in range(n)
            ]
            session.add_all(articles)
            session.flush()
            comments = [comment for article in articles for comment in article.comments]
            links = [
                {"article_id": article.id, "tag_id": tag.id}
                for article in articles
                for tag in article.tags
            ]
            bench.commit(session, inserted=articles + comments, linked=(models.article_tag, links))
    return {
        "transaction": {"insert": 1},
        "article": {"insert": n},
        "comment": {"insert": 3 * n},
        "article_tag": {"insert": 2 * n},
    }


@workload("W8", f"update rows of {WIDE_COLUMNS} columns", size=2_000, short=50)
def update_wide(bench: Bench, n: int) -> Rows:
    def row(number: int) -> dict[str, Any]:
        return {
            f"c{c:02}": number + c if c % 2 else f"value {number} of {c}"
            for c in range(1, WIDE_COLUMNS)
        }

    bench.fill(wide=[row(number) for number in range(n)])
    with bench.session() as session:
        objects = loaded(session, bench.models.Wide)
        with bench.clock():
            for instance in objects:
                instance.c01 += 1
            bench.commit(session, updated=objects)
    return {"transaction": {"insert": 1}, "wide": {"update": n, "closed": n}}


@workload("W9", "bulk update() of a table", size=100_000, short=500, budget=3, memory=True)
def bulk_update(bench: Bench, n: int) -> Rows:
    Item = bench.models.Item
    bench.fill(item=items(n))
    with bench.session() as session, bench.clock():
        bench.contender.bulk_update(session, update(Item).values(score=Item.score + 1))
    return {"transaction": {"insert": 1}, "item": {"update": n, "closed": n}}


@workload("W10", "declare and configure models", size=200, short=10, fresh=True, memory=True)
def declare_models(bench: Bench, n: int) -> None:
    bench.contender.before_models()
    with bench.clock():
        classes = declare_many(bench.contender.new_base(), n, bench.versioned)
        configure_mappers()
    assert len(classes) == n


@workload("W11", "insert objects: peak memory", size=100_000, short=500, memory=True, timed=False)
def insert_many(bench: Bench, n: int) -> Rows:
    return insert_objects(bench, n)


@workload("W12", "commit 1 dirty object of many loaded", size=10_000, short=200, rounds=3)
def one_dirty(bench: Bench, n: int) -> Rows:
    return _one_dirty(bench, n, flush_alone=False)


@workload("W12f", "the same, the flush alone", size=10_000, short=200, rounds=3)
def one_dirty_flush(bench: Bench, n: int) -> Rows:
    return _one_dirty(bench, n, flush_alone=True)


def _one_dirty(bench: Bench, n: int, *, flush_alone: bool) -> Rows:
    bench.fill(item=items(n))
    with bench.session() as session:
        objects = loaded(session, bench.models.Item)
        with bench.clock():
            objects[-1].score += 1
            if flush_alone:
                bench.contender.flush(session, Changed(updated=objects[-1:]))
            else:
                bench.commit(session, updated=objects[-1:])
        session.commit()
    return {"transaction": {"insert": 1}, "item": {"update": 1, "closed": 1}}


@workload(
    "W13", "flush all loaded, no net change", size=3_000, short=100, flushes=lambda n: 0, rounds=3
)
def no_net_change(bench: Bench, n: int) -> Rows:
    """Each object is changed and changed back, which plain finds out object by object."""
    bench.fill(item=items(n))
    with bench.session() as session:
        objects = loaded(session, bench.models.Item)
        with bench.clock():
            for instance in objects:
                instance.score += 1
                instance.score -= 1
            session.flush()
        session.commit()
    return {}


@workload("W14", "attach 5 tags to an old association history", size=2_000, short=50, rounds=3)
def attach_tags(bench: Bench, n: int) -> Rows:
    """*n* links to 20 tags were made in transaction 1 and ended in transaction 2.

    Tags are attached to another article first, which is not measured: tables that were just made
    cost whoever asks first the time to prepare each statement.
    """
    models = bench.models
    many = -(-n // 20)
    bench.empty()
    with bench.preparing() as connection:
        bench.transactions(connection, 2)
        for name, rows in {
            "article": [{"title": f"article {number}"} for number in range(many + 2)],
            "tag": [{"name": f"tag {number}"} for number in range(20)],
        }.items():
            bench.insert(connection, bench.tables[name], rows)
            bench.add_versions(connection, name, select(bench.tables[name]), 1, INSERT)
        article, tag = bench.tables["article"], bench.tables["tag"]
        links = select(article.c.id.label("article_id"), tag.c.id.label("tag_id")).where(
            article.c.id <= many
        )
        two = literal(2)
        bench.add_versions(connection, "article_tag", links, 1, INSERT, end=two)
        bench.add_versions(connection, "article_tag", links, 2, DELETE)
    bench.settle()
    for number in (many + 1, many + 2):
        with bench.session() as session:
            chosen = loaded(session, models.Tag)[:5]
            owner = session.get_one(models.Article, number)
            assert owner.tags == []
            with bench.clock() if number == many + 2 else nullcontext():
                owner.tags.extend(chosen)
                made = [{"article_id": number, "tag_id": tag_id} for tag_id in range(1, 6)]
                bench.commit(session, linked=(models.article_tag, made))
    return {"transaction": {"insert": 2}, "article_tag": {"insert": 10}}


@workload("import", "import the library", size=1, short=1, fresh=True, rounds=2)
def import_library(bench: Bench, n: int) -> None:
    """On top of ``sqlalchemy`` and ``sqlalchemy.orm``, which are there already."""
    with bench.clock():
        bench.contender.load()


# Reading


def _history_of_one(bench: Bench, n: int) -> None:
    """One item with *n* versions, one in each transaction."""
    with bench.filled_once(("one", n)) as needed:
        if not needed:
            return
        bench.empty()
        table = bench.tables["item"]
        with bench.preparing() as connection:
            bench.transactions(connection, n)
            bench.insert(connection, table, [item(n)])
            version = bench.tables["item_version"]
            rows = []
            for tx in range(1, n + 1):
                row = {"id": 1, **item(tx), "transaction_id": tx}
                row["operation_type"] = INSERT if tx == 1 else UPDATE
                if "end_transaction_id" in version.columns:
                    row["end_transaction_id"] = tx + 1 if tx < n else None
                rows.append(row)
            bench.insert(connection, version, rows)
        bench.settle()


def _walk(bench: Bench, n: int, step: str) -> None:
    _history_of_one(bench, n)
    Version = bench.contender.version_class(bench.models.Item)
    order = Version.transaction_id if step == "next" else Version.transaction_id.desc()
    with bench.session() as session:
        version = session.scalars(select(Version).order_by(order).limit(1)).one()
        seen = 0
        with bench.clock():
            while version is not None:
                seen += 1
                version = getattr(version, step)
    assert seen == n, f"walked over {seen} versions instead of {n}"


READ: dict[str, Any] = {"size": 1_000, "short": 50, "budget": 2}


@workload("R1", "walk .next over the versions of one object", **READ)
def walk_next(bench: Bench, n: int) -> None:
    _walk(bench, n, "next")


@workload("R2", "walk .previous over the versions of one object", **READ)
def walk_previous(bench: Bench, n: int) -> None:
    _walk(bench, n, "previous")


@workload("R3", "the changeset of each version of one object", **READ)
def changesets(bench: Bench, n: int) -> None:
    _history_of_one(bench, n)
    with bench.session() as session:
        owner = session.get_one(bench.models.Item, 1)
        with bench.clock():
            changed = sum(len(version.changeset) for version in owner.versions)
    expected = 5 + 4 * (n - 1)
    assert changed == expected, f"{changed} changed columns instead of {expected}"


@workload("R4", "a collection of each version, as of its transaction", **READ)
def collections(bench: Bench, n: int) -> None:
    """A tenth as many articles, each with 10 versions and 3 comments that changed twice."""
    models = bench.models
    many = max(1, n // 10)
    with bench.filled_once(("collections", n)) as needed:
        if needed:
            bench.empty()
            article, comment = bench.tables["article"], bench.tables["comment"]
            with bench.preparing() as connection:
                bench.transactions(connection, 10)
                bench.insert(connection, article, [{"title": f"a {i}"} for i in range(many)])
                made = [{"body": f"{i}", "article_id": 1 + i % many} for i in range(3 * many)]
                bench.insert(connection, comment, made)
                for name, step in (("article", 1), ("comment", 4)):
                    for tx in range(1, 11, step):
                        end = literal(tx + step) if tx + step <= 10 else None
                        operation = INSERT if tx == 1 else UPDATE
                        source = select(bench.tables[name])
                        bench.add_versions(connection, name, source, tx, operation, end)
            bench.settle()
    Version = bench.contender.version_class(models.Article)
    Comment = bench.contender.version_class(models.Comment)
    assert Comment is not None
    statement = select(Version).order_by(Version.id, Version.transaction_id)
    with bench.session() as session, bench.clock():
        options = bench.contender.eager(Version.comments)
        versions = session.scalars(statement.options(*options)).all()
        found = sum(len(version.comments) for version in versions)
    assert found == 30 * many, f"{found} comments instead of {30 * many}"


@workload(
    "R5",
    "a whole table as of a moment, 10 versions a row",
    size=100_000,
    short=200,
    budget=0,
)
def whole_table(bench: Bench, n: int) -> None:
    """Count and sum over all rows, so that it is the database that is measured."""
    spread = max(1, n // 100)
    with bench.filled_once(("table", n)) as needed:
        if needed:
            bench.empty()
            table = bench.tables["item"]
            with bench.preparing() as connection:
                bench.transactions(connection, 10 * spread)
                bench.insert(connection, table, items(n))
                for k in range(10):
                    tx = k * spread + 1 + table.c.id % spread
                    end = tx + spread if k < 9 else None
                    operation = UPDATE if k else INSERT
                    bench.add_versions(connection, "item", select(table), tx, operation, end)
            bench.settle()
    statement = bench.contender.as_of(bench.models.Item, 5 * spread).subquery()
    query = select(func.count(statement.c.title), func.sum(statement.c.score))
    with bench.session() as session, bench.clock():
        count, _ = session.execute(query).one()
    assert count == n, f"{count} rows instead of {n}"


# Scale: what benchmarks.scale looks at in several sizes


@workload("S1", "flushes in one transaction, of one object each", size=100, short=10, budget=None)
def many_flushes(bench: Bench, n: int) -> None:
    bench.fill(item=items(n))
    with bench.session() as session:
        objects = loaded(session, bench.models.Item)
        with bench.clock():
            for instance in objects:
                instance.score += 1
                session.flush()
            session.commit()


@workload("S4", "flushes in one transaction, of the same object", size=100, short=10, budget=None)
def flushes_of_one(bench: Bench, n: int) -> None:
    bench.fill(item=items(1))
    with bench.session() as session:
        [instance] = loaded(session, bench.models.Item)
        with bench.clock():
            for _ in range(n):
                instance.score += 1
                session.flush()
            session.commit()


@workload("S2", "transactions of one update among so many models", size=100, short=5, fresh=True)
def among_models(bench: Bench, n: int) -> None:
    bench.contender.before_models()
    classes = declare_many(bench.contender.new_base(), n, bench.versioned)
    metadata = classes[0].metadata
    bench.contender.create_tables(metadata, bench.engine)
    with bench.session() as session:
        objects = [classes[number * n // 10](c0="a") for number in range(10)]
        session.add_all(objects)
        session.commit()
        for instance in objects:  # statements are compiled
            instance.c0 = "b"
            session.commit()
        with bench.clock():
            for number in range(200):
                objects[number % 10].c0 = f"{number}"
                session.commit()
    metadata.drop_all(bench.engine)


@workload("S3", "update 1,000 objects in a history of so many versions", size=10_000, short=10_000)
def in_history(bench: Bench, n: int) -> None:
    """Each tenth version is the open one of its object; the history grows by those of each run."""
    many = n // 10
    with bench.filled_once(("history", n)) as needed:
        if needed:
            bench.empty()
            table = bench.tables["item"]
            with bench.preparing() as connection:
                bench.transactions(connection, 10)
                bench.insert(connection, table, items(many))
                for tx in range(1, 11):
                    operation = INSERT if tx == 1 else UPDATE
                    end = literal(tx + 1) if tx < 10 else None
                    bench.add_versions(connection, "item", select(table), tx, operation, end)
            bench.settle()
    Item = bench.models.Item
    with bench.session() as session:
        step = max(1, many // 1_000)
        statement = select(Item).where(Item.id % step == 0).order_by(Item.id).limit(1_000)
        objects = session.scalars(statement).all()
        assert len(objects) == min(many, 1_000)
        with bench.clock():
            for instance in objects:
                instance.score += 1
            bench.commit(session, updated=objects)
