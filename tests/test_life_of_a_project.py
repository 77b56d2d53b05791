"""The whole life of a project in one test: versioned late, migrated often, kept up, mended."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Engine

from alembic_project import Project

pytestmark = [pytest.mark.sqlite_file, pytest.mark.timeout(300)]

State = dict[str, Any]

# What is done to data is data, so that the project and the ledger below do the same.
ACT = """
import decimal

def value(name, given):
    kinds = {"color": lambda label: Color[label], "weight": decimal.Decimal}
    return given if name not in kinds or given is None else kinds[name](given)

def state(obj, names):
    found = {name: getattr(obj, name) for name in names if name not in ("id", "kind", "tags")}
    found |= {k: v.name for k, v in found.items() if isinstance(v, enum.Enum)}
    found |= {k: str(v) for k, v in found.items() if isinstance(v, decimal.Decimal)}
    if "tags" in names:
        found["tags"] = sorted(tag.id for tag in obj.tags)
    return found

def look():
    return {
        "live": {
            name: {str(o.id): state(o, names) for o in session.scalars(sa.select(globals()[name]))}
            for name, names in data["classes"].items()
        },
        "past": {
            str(tx): {
                name: {
                    str(v.id): state(v, data["classes"][name])
                    for v in session.scalars(h.as_of(globals()[name], tx))
                }
                for name in data["versioned"]
            }
            for tx in data["moments"]
        },
        "wrong": [
            finding.message
            for name in data["versioned"]
            for finding in h.verify(session, globals()[name])
            if finding.severity != "note"
        ],
    }

def newest():
    table = Base.metadata.tables.get("transaction")
    return None if table is None else session.scalar(sa.select(sa.func.max(table.c.id)))

exec(data["upkeep"])
session.commit()
if data["begin"]:
    data["moments"].append(newest())
found += [newest(), look()]
session.rollback()
for actions in data["commits"]:
    for verb, name, *rest in actions:
        cls = globals()[name]
        if verb == "delete":
            session.delete(session.get(cls, rest[0]))
        elif verb == "bulk":
            session.execute(sa.update(cls).values({k: value(k, v) for k, v in rest[0].items()}))
        else:
            obj = session.get(cls, rest[0])
            if obj is None:
                session.add(obj := cls(id=rest[0]))
            for key, given in rest[1].items():
                if key == "tags":
                    given = [session.get(Tag, id_) for id_ in given]
                setattr(obj, key, value(key, given))
        session.flush()
    session.commit()
    found.append(newest())
    if found[-1] is not None:
        data["moments"] = sorted({*data["moments"], found[-1]})
    session.commit()
found.append(look())
session.rollback()
exec(data["script"])
"""


NAMED = """(DeclarativeBase):
    metadata = sa.MetaData(naming_convention={
        "ix": "ix_%(column_0_label)s", "fk": "fk_%(table_name)s_%(column_0_name)s",
    })"""

LINKS = """
links = sa.Table(
    "article_tag", Base.metadata,
    sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
)
Article.tags = relationship(Tag, secondary=links)
"""

VACUUM = "assert h.vacuum(session, Article)"

BREAK = """
AV, LV = h.version_table(Article.__table__), h.version_table(Letter.__table__)
DV = h.version_table(Document.__table__)
transaction = Base.metadata.tables["transaction"]
made = session.scalar(sa.select(sa.func.min(DV.c.transaction_id)).where(DV.c.id == 1))
with session.get_bind().begin() as connection:
    for statement in (
        sa.update(Article.__table__).where(Article.id == 1).values(headline="by hand"),
        sa.delete(Base.metadata.tables["article_tag"]).where(sa.text("article_id = 4")),
        sa.delete(Article.__table__).where(Article.id == 4),
        sa.insert(Article.__table__).values(id=5, headline="new by hand"),
        sa.update(DV).where(DV.c.id == 1, DV.c.transaction_id == made).values(end_transaction_id=9999),
        sa.update(LV).where(LV.c.id == 3).values(end_transaction_id=9999),
        sa.delete(transaction).where(transaction.c.id == made),
    ):
        connection.execute(statement)
session.rollback()
broken = sorted({
    finding.kind for cls in (Article, Letter) for finding in h.verify(session, cls)
    if finding.severity != "note"
})
for cls in (Letter, Article):
    assert h.repair(session, cls)
"""

HIERARCHY = """
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}
"""


class Ledger:
    """What the history should say, in plain Python.

    :ivar rows: by class and key, the versions: (transaction, state, or None for a deleted row).
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, list[tuple[int, State | None]]]] = {}
        self.live: dict[str, dict[int, State]] = {}
        self.versioned: list[str] = []
        self.moments: list[int] = []

    def act(self, actions: Sequence[Sequence[Any]], tx: int | None) -> None:
        """Do to the expected states what the project did in one transaction."""
        for verb, name, *rest in actions:
            rows = self.live.setdefault(name, {})
            if verb == "delete":
                del rows[rest[0]]
                self._write(name, rest[0], tx)
                continue
            values = rest[-1]
            for key in list(rows) if verb == "bulk" else [rest[0]]:
                before = rows.get(key)
                rows[key] = {**(before or {}), **values}
                if rows[key] != before:
                    self._write(name, key, tx)
        if tx is not None:
            self.moments = sorted({*self.moments, tx})

    def _write(self, name: str, key: int, tx: int | None) -> None:
        if name in self.versioned:
            assert tx is not None
            versions = self.rows.setdefault(name, {}).setdefault(key, [])
            state = self.live[name].get(key)
            if versions and versions[-1][0] == tx:
                versions.pop()
            versions.append((tx, None if state is None else dict(state)))

    def version(self, name: str, tx: int) -> None:
        """The class is versioned from now on: its rows get a first version."""
        self.versioned.append(name)
        for key in self.live.get(name, {}):
            self._write(name, key, tx)
        self.moments = sorted({*self.moments, tx})

    def forget(self, name: str) -> None:
        """The class is versioned no more."""
        self.versioned.remove(name)
        self.rows.pop(name, None)

    def evolve(self, name: str, change: Any) -> None:
        """`change(state, is_current)` is done to each state of a class."""
        for state in self.live.get(name, {}).values():
            change(state, True)
        for versions in self.rows.get(name, {}).values():
            for version in versions:
                if version[1] is not None:
                    change(version[1], version is versions[-1])

    def prune(self, name: str, before: int) -> None:
        """What had ended by then is gone."""
        for key, versions in list(self.rows.get(name, {}).items()):
            kept = [
                version
                for i, version in enumerate(versions)
                if i + 1 == len(versions) or versions[i + 1][0] > before
            ]
            if len(kept) == 1 and kept[0][1] is None and kept[0][0] <= before:
                kept = []
            self.rows[name][key] = kept

    def as_of(self, name: str, tx: int) -> dict[str, State]:
        """The rows of a class as they were then."""
        found = {}
        for key, versions in self.rows.get(name, {}).items():
            before = [state for start, state in versions if start <= tx]
            if before and before[-1] is not None:
                found[str(key)] = before[-1]
        return found


class Life:
    """A project, its models as of now, and the ledger."""

    def __init__(self, project: Project) -> None:
        self.project = project
        # without names Alembic cannot say in a downgrade which foreign key it is about
        project.head = project.head.replace("(DeclarativeBase):\n    pass", NAMED)
        self.ledger = Ledger()
        #: by class: its table, base, and columns by attribute
        self.classes: dict[str, dict[str, str]] = {}
        self.heads: dict[str, str] = {}
        self.bases: dict[str, str] = {}
        self.more = ""
        self.settings: dict[str, Any] = {}

    def add(self, name: str, table: str, base: str = "Base", **columns: str) -> None:
        """Declare a class; it is versioned if the ledger says so."""
        self.classes[name] = {"id": "sa.Integer, primary_key=True", **columns}
        self.heads[name] = f"class {name}({base}):\n    __tablename__ = {table!r}\n"
        if base in self.classes:
            self.bases[name] = base

    def attributes(self) -> dict[str, list[str]]:
        """What is compared of each class; an object of a hierarchy is looked at once."""
        return {
            name: [
                *self.classes.get(self.bases.get(name, ""), ()),
                *columns,
                *(["tags"] if f"{name}.tags" in self.more else []),
            ]
            for name, columns in self.classes.items()
            if name not in self.bases.values()
        }

    def text(self) -> str:
        """What models.py says."""
        text = ""
        for name, columns in self.classes.items():
            text += self.heads[name]
            if name in self.ledger.versioned or name in self.bases.values():
                text += "    __versioned__ = {}\n"
            text += "".join(f"    {c} = mapped_column({type_})\n" for c, type_ in columns.items())
        return text + self.more

    def step(
        self,
        *commits: Any,
        begin: Sequence[str] = (),
        commands: Sequence[str] | None = None,
        upkeep: str = "",
        repaired: Sequence[Any] = (),
        script: str = "",
    ) -> Any:
        """Migrate to what the models say, look at all of the past, do `commits`, look again.

        :param begin: classes that are versioned from here on.
        :param commands: of Alembic, instead of those that write and run a revision.
        :param upkeep: run after the migration.
        :param repaired: what the last transaction of the upkeep recorded.
        :param script: run at last; what it finds is returned.
        """
        ledger = self.ledger
        already = list(ledger.versioned)
        ledger.versioned += begin
        self.project.models(self.text(), **self.settings)
        data = {
            "classes": self.attributes(),
            "versioned": ledger.versioned,
            "moments": ledger.moments,
            "begin": bool(begin or repaired),
            "commits": commits,
            "upkeep": textwrap.dedent(upkeep),
            "script": textwrap.dedent(script),
        }
        if commands is None:
            found = self.project.migrate(ACT, data)
        else:
            found = self.project.run(*commands, script=ACT, data=data)
        newest, before, *rest = found
        ledger.versioned = already
        for name in begin:
            ledger.version(name, newest)
        if repaired:
            ledger.act(repaired, newest)
        self._compare(before)
        for actions, tx in zip(commits, rest, strict=False):
            ledger.act(actions, tx)
        self._compare(rest[len(commits)])
        return rest[len(commits) + 1 :]

    def _compare(self, seen: Any) -> None:
        ledger, names = self.ledger, list(self.attributes())
        expected = {n: {str(k): s for k, s in ledger.live.get(n, {}).items()} for n in names}
        assert seen["live"] == expected
        assert sorted(map(int, seen["past"])) == ledger.moments
        for tx in ledger.moments:
            past = {name: ledger.as_of(name, tx) for name in ledger.versioned}
            assert seen["past"][str(tx)] == past, f"as of transaction {tx}"
        assert seen["wrong"] == []


@pytest.fixture
def life(tmp_path: Path, engine: Engine) -> Iterator[Life]:
    project = Project(tmp_path / "project", engine)
    yield Life(project)
    project.close()


def put(name: str, key: int, **values: Any) -> tuple[Any, ...]:
    return "put", name, key, values


def add(column: str, value: Any = None) -> Any:
    """A column came, and what is current has `value` in it."""
    return lambda state, is_current: state.update({column: value if is_current else None})


def rename(old: str, new: str) -> Any:
    return lambda state, is_current: state.update({new: state.pop(old)})


def drop(column: str) -> Any:
    return lambda state, is_current: state.pop(column)


def test_the_life_of_a_project(life: Life, backend: str) -> None:
    """Begun unversioned, migrated twenty times, pruned, redacted, broken and repaired.

    After each of it verify() finds nothing, and as_of() is right for every moment there ever was.
    """
    ledger, classes = life.ledger, life.classes

    # 1: without versioning
    life.add("Article", "article", title="sa.String(50)", color="sa.Enum(Color)")
    life.step(
        [
            put("Article", 1, title="one", color="red"),
            put("Article", 2, title=None, color=None),
            put("Article", 3, title="three", color="blue"),
        ]
    )

    # 2: versioned
    life.step(
        [put("Article", 1, title="one b"), put("Article", 4, title="four", color=None)],
        [("delete", "Article", 3)],
        begin=["Article"],
    )
    # 3: a column that may be NULL
    classes["Article"]["body"] = "sa.Text"
    ledger.evolve("Article", add("body"))
    life.step([put("Article", 1, body="text")], [("bulk", "Article", {"body": "same"})])

    # 4: a column with values in the rows that are there
    classes["Article"]["rating"] = "sa.Integer, nullable=False, server_default='3'"
    ledger.evolve("Article", add("rating", 3))
    life.step([put("Article", 2, rating=4)])

    # 5: a renamed column
    columns = classes["Article"]
    del columns["title"]
    columns["headline"] = "sa.String(50), info={'renamed_from': 'title'}"
    ledger.evolve("Article", rename("title", "headline"))
    life.step([put("Article", 1, headline="one c")])

    # 6: longer, and an index
    columns["headline"] = "sa.String(80), index=True"
    life.step([put("Article", 1, headline="n" * 70)])

    # 7: another type
    columns["rating"] = "sa.String(10), nullable=False, server_default='3'"
    ledger.evolve(
        "Article",
        lambda state, _: state.update(
            rating=None if state["rating"] is None else str(state["rating"])
        ),
    )
    life.step([put("Article", 1, rating="five")])

    # 8: one more label of an enum
    life.project.head = life.project.head.replace("blue = 2", "blue = 2\n    green = 3")
    if backend == "sqlite":
        life.step()
    else:
        life.project.by_hand(
            "op.execute(\"ALTER TYPE color ADD VALUE 'green'\")"
            if backend == "postgresql"
            else "op.alter_column('article', 'color', type_=sa.Enum('red', 'blue', 'green'))"
        )
        life.step(commands=["upgrade head"])
    life.step([put("Article", 2, color="green")], commands=["check"])

    # 9: a versioned table that refers to the first
    life.add("Comment", "comment", text="sa.String(50)", article_id="sa.ForeignKey('article.id')")
    ledger.versioned.append("Comment")
    life.step(
        [put("Comment", 1, text="c", article_id=1), put("Comment", 2, text="d", article_id=2)],
        [put("Comment", 1, text="c", article_id=2)],
    )

    # 10: links
    life.add("Tag", "tag", word="sa.String(20)")
    ledger.versioned.append("Tag")
    life.more = LINKS
    ledger.evolve("Article", lambda state, _: state.update(tags=[]))
    life.step(
        [put("Tag", 1, word="a"), put("Tag", 2, word="b"), put("Article", 1, tags=[1])],
        [put("Article", 1, tags=[1, 2]), put("Article", 4, tags=[2])],
        [put("Article", 1, tags=[2])],
    )

    # 11: the first table is renamed; what refers to it follows
    life.heads["Article"] = life.heads["Article"].replace(
        "'article'", "'post'\n    __table_args__ = {'info': {'renamed_from': 'article'}}"
    )
    classes["Comment"]["article_id"] = "sa.ForeignKey('post.id')"
    life.more = LINKS.replace("article.id", "post.id")
    life.step([put("Article", 4, headline="renamed"), put("Comment", 2, article_id=4)])
    life.heads["Article"] = "class Article(Base):\n    __tablename__ = 'post'\n"

    # 12: a column less; versions that changed it alone are equal to others now
    del columns["body"]
    ledger.evolve("Article", drop("body"))
    life.step([put("Article", 2, headline="without body")], upkeep=VACUUM)

    # 13: a user for each transaction
    life.add("User", "app_user", nick="sa.String(20)")
    life.settings["user_cls"] = "User"
    life.step([put("User", 1, nick="u"), put("Article", 2, headline="by somebody")])

    # 14: plugins, with tables and columns
    life.settings["plugins"] = ", ".join(
        f"plugins.{name}Plugin()"
        for name in (
            "PropertyModTracker",
            "TransactionChanges",
            "TransactionMeta",
            "ChangeLog",
            "Activity",
        )
    )
    [mods, names, log] = life.step(
        [put("Article", 2, headline="watched"), put("Comment", 1, text="watched")],
        [("bulk", "Article", {"rating": "bulk"})],
        script="""
            AV = h.version_class(Article)
            last = sa.select(AV).order_by(AV.transaction_id.desc(), AV.id).limit(1)
            v = session.scalars(last).one()
            found.append([v.headline_mod, v.color_mod, v.rating_mod])
            found.append([tx.entity_names for tx in session.scalars(
                sa.select(h.transaction_class(Article)).order_by(sa.text("id DESC")).limit(2))])
            log = h.versioning_manager.changelog_cls
            found.append([[e.table_name, e.row_id, e.event_type]
                for e in session.scalars(sa.select(log).order_by(log.id))])
            """,
    )
    assert mods == [False, False, True]
    assert names == [["Article"], ["Article", "Comment"]]
    assert sorted(log) == [
        ["comment", 1, "UPDATE"],
        *(["post", key, "UPDATE"] for key in (1, 2, 2, 4)),
    ]

    # 15, 16: another strategy, and back
    life.settings["strategy"] = "subquery"
    life.step([put("Article", 1, headline="subquery")], [("delete", "Comment", 2)])
    life.settings["strategy"] = "validity"
    life.step([put("Article", 1, headline="validity")])

    # 17: a column that goes, and stays in history
    del columns["rating"]
    life.more += "CONFIGURE = {'history_keep_dropped_columns': True}\n"
    ledger.evolve("Article", drop("rating"))
    [ratings] = life.step(
        [put("Article", 1, headline="kept")],
        upkeep=VACUUM,
        script="""
            found.append(session.scalars(sa.text(
                "SELECT rating FROM post_version WHERE id = 1 ORDER BY transaction_id")).all())
            """,
    )
    assert ratings[-3:] == ["bulk", "bulk", None]

    # 18, 19: without versioning, and with it again: a new history begins
    ledger.forget("Comment")
    life.step([put("Comment", 1, text="unseen")])
    life.step(
        [put("Comment", 1, text="seen"), put("Comment", 3, text="new", article_id=1)],
        begin=["Comment"],
    )

    # 20: a hierarchy of two tables
    life.add("Document", "document", kind="sa.String(20)", title="sa.String(50)")
    life.heads["Document"] += HIERARCHY
    life.add("Letter", "letter", "Document", stamp="sa.Integer")
    classes["Letter"]["id"] = "sa.ForeignKey('document.id'), primary_key=True"
    life.heads["Letter"] += "    __mapper_args__ = {'polymorphic_identity': 'letter'}\n"
    ledger.versioned += ["Letter"]
    life.step(
        [put("Letter", 1, title="a", stamp=1), put("Letter", 2, title="b", stamp=2)],
        [put("Letter", 1, stamp=3)],
        [("delete", "Letter", 2)],
    )

    # 21: one more column in one of them, and one that may not be NULL any more
    classes["Letter"]["weight"] = "sa.Numeric(6, 2), nullable=False, server_default='1.50'"
    classes["Document"]["title"] = "sa.String(50), nullable=False"
    ledger.evolve("Letter", add("weight", "1.50"))
    life.step([put("Letter", 1, stamp=4), put("Letter", 3, title="c", stamp=None, weight="2.00")])

    # 22: fewer plugins
    life.settings["plugins"] = "plugins.TransactionMetaPlugin()"
    life.step([put("Article", 1, headline="unwatched")])

    # pruned: what is left is right from that moment on
    moment = ledger.moments[-8]
    for name in ledger.versioned:
        ledger.prune(name, moment)
    ledger.moments = [tx for tx in ledger.moments if tx >= moment]
    life.step(
        commands=[],
        upkeep=f"""
            gone = [h.prune(session, globals()[n], before={moment}) for n in data["versioned"]]
            assert sum(gone) > 5
            """,
    )
    # redacted
    ledger.evolve("Article", lambda state, _: state.update(headline="(erased)"))
    life.step(
        [put("Article", 1, headline="after")],
        commands=[],
        upkeep="""
            for id_ in (1, 2, 4):
                h.redact(session, Article, id_, columns={"headline": "(erased)"})
            h.vacuum(session, Article)
            """,
    )
    # broken by hand, and repaired: a new version says what the live row says
    kinds = life.step(
        [put("Article", 2, headline="repaired"), put("Letter", 1, stamp=5)],
        commands=[],
        upkeep=BREAK,
        repaired=[
            put("Article", 1, headline="by hand"),
            ("delete", "Article", 4),
            put("Article", 5, headline="new by hand", color=None, tags=[]),
        ],
        script="found += broken",
    )
    assert set(kinds) == {
        "differs from live row", "gone without DELETE", "no history", "wrong end",
        "no open version", "dangling transaction",
    }  # fmt: skip
