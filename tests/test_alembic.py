"""Migrations that Alembic's autogenerate writes carry history along: up, down, and checked."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import CreateTableOp
from sqlalchemy.engine import Engine
from sqlalchemy.orm import mapped_column

import sqlalchemy_history.ext.alembic  # noqa: F401 - autogenerate finds it by its import
from alembic_project import Project
from sqlalchemy_history.native import drop_triggers, triggers_are_current
from sqlalchemy_history.plugins import ChangeLogPlugin

pytestmark = [pytest.mark.sqlite_file, pytest.mark.timeout(300)]


@pytest.fixture
def project(tmp_path: Path, engine: Engine) -> Iterator[Project]:
    project = Project(tmp_path / "project", engine)
    yield project
    project.close()


PLAIN = """
class Article(Base):
    __tablename__ = "article"
    id = mapped_column(sa.Integer, primary_key=True)
    title = mapped_column(sa.String(50))
    color = mapped_column(sa.Enum(Color))
"""

VERSIONED = """
class Article(Base):
    __tablename__ = "article"
    __versioned__ = {}
    id = mapped_column(sa.Integer, primary_key=True)
    title = mapped_column(sa.String(50))
    color = mapped_column(sa.Enum(Color))
"""

SHOW = """
AV = h.version_class(Article)
found += [
    [v.operation_type, v.title, None if v.color is None else v.color.name]
    for v in session.scalars(sa.select(AV).order_by(AV.id, AV.transaction_id))
]
found += [[f.kind for f in h.verify(session, Article) if f.severity != "note"]]
"""


def test_a_history_through_a_chain_of_revisions(project: Project) -> None:
    """Started without versioning, given it, evolved: as_of() is right after each revision."""
    project.models(PLAIN)
    assert (
        project.migrate(
            "session.add_all([Article(id=1, title='old', color=Color.red), Article(id=2)])"
        )
        == []
    )

    project.models(VERSIONED)
    found = project.migrate(SHOW + "session.get(Article, 1).title = 'new'")
    assert found == [[0, "old", "red"], [0, None, None], []]
    assert "op.backfill_versions(['article'])" in project.last_revision()

    # a column with a value in the rows that are there
    rated = (
        VERSIONED + "    rating = mapped_column(sa.Integer, nullable=False, server_default='3')\n"
    )
    project.models(rated)
    found = project.migrate(
        SHOW
        + "found += session.scalars(sa.select(AV.rating).order_by(AV.id, AV.transaction_id))\n"
        + "session.get(Article, 2).rating = 4"
    )
    assert found == [[0, "old", "red"], [1, "new", "red"], [0, None, None], [], None, 3, 3]

    # renamed and retyped
    renamed = rated.replace(
        "title = mapped_column(sa.String(50))",
        "headline = mapped_column(sa.String(50), info={'renamed_from': 'title'})",
    )
    project.models(renamed)
    show = SHOW.replace("v.title", "v.headline")
    assert project.migrate(show) == [
        [0, "old", "red"],
        [1, "new", "red"],
        [0, None, None],
        [1, None, None],
        [],
    ]
    assert "rename_versioned_column('article', 'title', 'headline')" in project.last_revision()
    retyped = renamed.replace("String(50)", "String(80)")
    project.models(retyped)
    project.migrate("session.get(Article, 1).headline = 'n' * 40")
    assert project.last_revision().count("alter_column(") == 4

    # a new table with links to the old one
    linked = retyped + textwrap.dedent("""
        article_tag = sa.Table(
            "article_tag", Base.metadata,
            sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
            sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        )
        class Tag(Base):
            __tablename__ = "tag"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
        Article.tags = relationship(Tag, secondary=article_tag)
        """)
    project.models(linked)
    found = project.migrate(
        """
        article = session.get(Article, 1)
        article.tags.append(Tag(id=1))
        session.commit()
        Transaction = h.transaction_class(Article)
        AV = h.version_class(Article)
        for tx in session.scalars(sa.select(Transaction).order_by(Transaction.id)):
            then = session.scalars(h.as_of(Article, tx).order_by(AV.id))
            found.append([[v.headline and v.headline[:3], v.rating, len(v.tags)] for v in then])
        found.append([f.message for f in h.verify(session, Article)])
        """
    )
    assert found == [
        [["old", None, 0], [None, 3, 0]],
        [["new", 3, 0], [None, 3, 0]],
        [["new", 3, 0], [None, 4, 0]],
        [["nnn", 3, 0], [None, 4, 0]],
        [["nnn", 3, 1], [None, 4, 0]],
        [],
    ]

    # all the way down and up again; what each revision made is taken back
    project.models(rated)
    project.run("downgrade 03", "same")
    project.models(VERSIONED)
    project.run("downgrade 02", "same")
    project.models(PLAIN)
    project.run("downgrade 01", "same")
    project.models(linked)
    project.run("upgrade head", "check")


@pytest.mark.backends("sqlite", "postgresql")
def test_the_strategy_can_change(project: Project) -> None:
    """To validity: the new column of ends is filled before the index that needs it; and back."""
    project.models(VERSIONED, strategy="subquery")
    project.migrate(
        """
        article = Article(id=1, title="a")
        session.add(article)
        for title in "bc":
            session.commit()
            article.title = title
        """
    )
    project.models(VERSIONED)
    ends = """
        v = h.version_table(Article.__table__)
        found += [list(row) for row in session.execute(
            sa.select(v.c.transaction_id, v.c.end_transaction_id).order_by(v.c.transaction_id))]
        found += [[f.kind for f in h.verify(session, Article)]]
        """
    linked = [[1, 2], [2, 3], [3, None], []]
    assert project.migrate(ends) == linked
    project.models(VERSIONED, strategy="subquery")
    project.migrate("found.append([f.kind for f in h.verify(session, Article)])")
    project.models(VERSIONED)
    assert project.run("downgrade -1", "same", script=ends) == linked


def test_columns_with_names_of_their_own(project: Project) -> None:
    """Operations are told what options call the columns of a history."""
    names = {
        "transaction_column_name": "tx",
        "end_transaction_column_name": "tx_end",
        "operation_type_column_name": "op",
    }
    project.models(PLAIN)
    project.migrate("session.add(Article(id=1, title='old'))")
    project.models(VERSIONED, strategy="subquery", **names)
    project.migrate("session.get(Article, 1).title = 'new'")
    project.models(VERSIONED, **names)
    project.migrate()
    rated = (
        VERSIONED + "    rating = mapped_column(sa.Integer, nullable=False, server_default='3')\n"
    )
    project.models(rated, **names, native_versioning=True)
    found = project.migrate(
        """
        session.get(Article, 1).rating = 4
        session.commit()
        v = h.version_table(Article.__table__)
        found += [list(row) for row in session.execute(
            sa.select(v.c.tx, v.c.tx_end, v.c.op, v.c.title, v.c.rating).order_by(v.c.tx))]
        found += [[f.kind for f in h.verify(session, Article)]]
        """
    )
    assert found == [[1, 2, 0, "old", None], [2, 3, 1, "new", 3], [3, None, 1, "new", 4], []]
    project.models(PLAIN)
    project.run("downgrade 01", "same")


def test_versioning_can_be_dropped_and_taken_back(project: Project) -> None:
    """Without versioning its tables go; the downgrade brings them back with a first version."""
    project.models(VERSIONED)
    project.migrate("session.add(Article(id=1, title='a', color=Color.blue))")
    project.models(PLAIN)
    project.migrate()
    project.models(VERSIONED)
    assert project.run("downgrade -1", "same", script=SHOW) == [[0, "a", "blue"], []]
    project.run(script="session.get(Article, 1).title = 'b'")
    assert project.run(script=SHOW) == [[0, "a", "blue"], [1, "b", "blue"], []]


def test_a_dropped_column_can_stay_in_history(project: Project) -> None:
    """With history_keep_dropped_columns=True version tables keep what their parents have lost."""
    project.models(VERSIONED)
    project.migrate("session.add(Article(id=1, title='a'))")
    smaller = VERSIONED.replace("    title = mapped_column(sa.String(50))\n", "")
    project.models(smaller + "CONFIGURE = {'history_keep_dropped_columns': True}\n")
    found = project.migrate(
        """
        session.get(Article, 1).color = Color.red
        session.commit()
        found += session.execute(sa.text(
            "SELECT title FROM article_version ORDER BY transaction_id")).scalars()
        """
    )
    assert found == ["a", None]


def test_a_table_can_be_renamed(project: Project) -> None:
    """A table that says what it was called takes its versions along, and its foreign keys."""
    child = textwrap.dedent("""
        class Comment(Base):
            __tablename__ = "comment"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
            article_id = mapped_column(sa.ForeignKey("article.id"))
        """)
    project.models(VERSIONED + child)
    project.migrate(
        "session.add(Article(id=1, title='a')); session.flush(); "
        "session.add(Comment(id=1, article_id=1))"
    )
    renamed = (VERSIONED + child).replace('"article"', '"post"').replace("article.id", "post.id")
    renamed = renamed.replace(
        '__tablename__ = "post"',
        '__tablename__ = "post"\n    __table_args__ = {"info": {"renamed_from": "article"}}',
    )
    project.models(renamed)
    assert project.migrate(SHOW) == [[0, "a", None], []]
    assert "drop_table" not in project.last_revision()
    project.models(VERSIONED + child)
    assert project.run("downgrade -1", "same", script=SHOW) == [[0, "a", None], []]


def test_plugins_can_come_and_go(project: Project) -> None:
    """The tables and sequences of plugins are made, removed, and made again by a downgrade."""
    show = """
        log = h.versioning_manager.changelog_cls
        session.add(Article(title="a"))
        session.add(h.versioning_manager.activity_cls(verb="v", data={"n": 1}))
        session.commit()
        found += [[e.id, e.table_name, e.row_id] for e in session.scalars(sa.select(log))]
        """
    names = """
        if session.get_bind().dialect.supports_sequences:
            found += sorted(sa.inspect(session.get_bind()).get_sequence_names())
        """
    both = "plugins.ActivityPlugin(), plugins.ChangeLogPlugin()"
    project.models(VERSIONED)
    without = project.migrate(names)
    project.models(VERSIONED, plugins=both)
    assert project.migrate(show) == [[1, "article", 1]]
    project.models(VERSIONED)
    assert project.migrate(names) == without
    project.models(VERSIONED, plugins=both)
    assert project.run("downgrade -1", "same", script=show) == [[1, "article", 2]]


@pytest.mark.backends("sqlite")
def test_written_by_hand(project: Project) -> None:
    """Operations for migrations that are not generated; without a connection they say so."""
    project.models(VERSIONED)
    project.migrate("session.add(Article(id=1, title='a'))")
    project.by_hand(
        """
        op.drop_versions("article")
        op.execute("UPDATE article SET title = 'b'")
        op.backfill_versions("article")
        op.alter_versioned_column("article", "title", type_=sa.String(90), nullable=False)
        """,
        'op.alter_versioned_column("article", "title", type_=sa.String(50), nullable=True)',
    )
    assert "without --sql" in project.run("upgrade 01:02 --sql", fails=True)
    wider = VERSIONED.replace("sa.String(50)", "sa.String(90), nullable=False")
    project.models(wider)
    assert project.run("upgrade head", "check", script=SHOW) == [[0, "b", None], []]
    project.models(VERSIONED)
    project.run("downgrade -1", "same")


@pytest.mark.parametrize("plugins", [[ChangeLogPlugin()]])
def test_two_bases_in_one_database(
    versioning: Any, plugins: Any, make_base: Any, engine: Engine
) -> None:
    """What the Bases of a manager share is made once, and seen as there from then on."""
    bases = [make_base(), make_base()]

    class Article(bases[0]):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Tag(bases[1]):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    metadata = [base.metadata for base in bases]
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        upgrade = produce_migrations(context, metadata).upgrade_ops
        made = [one.table_name for one in upgrade.ops if isinstance(one, CreateTableOp)]
        assert len(made) == len(set(made))
        assert {"transaction", "changelog", "article_version", "tag_version"} <= set(made)
    make_base.create_all(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert produce_migrations(context, metadata).upgrade_ops.as_diffs() == []


OUTSIDE = """
def outside(*statements):
    "What a program that knows nothing of us does."
    with sa.create_engine(session.get_bind().url).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)

def kept():
    "What triggers are made of, as the database keeps it."
    return sorted(session.scalars(sa.text({
        "postgresql": "SELECT proname || md5(prosrc) FROM pg_proc WHERE prosrc LIKE '%history%'",
        "sqlite": "SELECT sql FROM sqlite_master WHERE sql LIKE '%history!_!_%' ESCAPE '!'",
        "mysql": "SELECT concat(trigger_name, ' ', action_statement) "
            "FROM information_schema.triggers WHERE trigger_schema = database()",
    }[session.get_bind().dialect.name.replace("mariadb", "mysql")])))
"""

LETTERS = """
class Document(Base):
    __tablename__ = "paper"
    __versioned__ = {}
    id = mapped_column(sa.Integer, primary_key=True)
    kind = mapped_column(sa.String(20))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}

class Letter(Document):
    __tablename__ = "letter"
    id = mapped_column(sa.ForeignKey("paper.id"), primary_key=True)
    stamp = mapped_column(sa.Integer)
    __mapper_args__ = {"polymorphic_identity": "letter"}
"""


def test_triggers_come_along(project: Project) -> None:
    """Triggers are made, made anew and dropped with what they record; downgrades are exact."""
    show = OUTSIDE + "found += kept()\n"
    project.models(VERSIONED)
    project.migrate("session.add(Article(id=1, title='a'))")
    states = [project.run(script=show)]
    assert states == [[]]

    narrow = VERSIONED + LETTERS
    project.models(narrow, native_versioning=True)
    found = project.migrate(
        OUTSIDE
        + textwrap.dedent("""
        outside("UPDATE article SET title = 'b'")
        outside("INSERT INTO paper VALUES (1, 'letter')", "INSERT INTO letter VALUES (1, 7)")
        LV = h.version_class(Letter)
        found += [[v.operation_type, v.kind, v.stamp] for v in session.scalars(sa.select(LV))]
        """)
        + SHOW
    )
    assert found == [[0, "letter", 7], [0, "a", None], [1, "b", None], []]
    assert "op.create_history_triggers('article')" in project.last_revision()
    assert "op.create_history_triggers(['paper', 'letter'])" in project.last_revision()
    states.append(project.run(script=show))

    # a column more, a column that is called otherwise
    wider = narrow.replace(
        "    stamp = mapped_column(sa.Integer)\n",
        "    stamp = mapped_column(sa.Integer)\n    weight = mapped_column(sa.Integer)\n",
    ).replace(
        "    title = mapped_column(sa.String(50))\n",
        "    headline = mapped_column(sa.String(50), info={'renamed_from': 'title'})\n",
    )
    project.models(wider, native_versioning=True)
    found = project.migrate(
        OUTSIDE
        + textwrap.dedent("""
        outside("UPDATE letter SET weight = 3")
        outside("UPDATE article SET headline = 'c'")
        LV = h.version_class(Letter)
        found += [[v.operation_type, v.weight] for v in session.scalars(
            sa.select(LV).order_by(LV.transaction_id))]
        """)
        + SHOW.replace("v.title", "v.headline")
    )
    assert found == [
        [0, None], [1, 3], [0, "a", None], [1, "b", None], [1, "c", None], [],
    ]  # fmt: skip
    states.append(project.run(script=show))

    # a table that is called otherwise, and one more that sessions record
    renamed = wider.replace('"article"', '"post"').replace(
        '__tablename__ = "post"',
        '__tablename__ = "post"\n    __table_args__ = {"info": {"renamed_from": "article"}}',
    )
    renamed += textwrap.dedent("""
        class Tag(Base):
            __tablename__ = "tag"
            __versioned__ = {"native_versioning": False}
            id = mapped_column(sa.Integer, primary_key=True)
        """)
    project.models(renamed, native_versioning=True)
    project.migrate(OUTSIDE + "outside(\"UPDATE post SET headline = 'd'\")")
    states.append(project.run(script=show))

    # sessions record, and then nobody does
    project.models(renamed)
    assert project.migrate(show) == []
    states.append([])
    nobody = re.sub("    __versioned__ = .*\n", "", renamed)
    project.models(nobody)
    assert project.migrate(show) == []

    native = {"native_versioning": True}
    for models, options in (
        (renamed, {}),
        (renamed, native),
        (wider, native),
        (narrow, native),
        (VERSIONED, {}),
    ):
        project.models(models, **options)
        assert project.run("downgrade -1", "same", script=show) == states.pop()
    project.models(nobody)
    project.run("upgrade head", "check")


def test_a_hierarchy_gets_its_triggers_back(project: Project) -> None:
    """A joined hierarchy whose versioning was dropped has the same triggers after a downgrade."""
    show = OUTSIDE + "found += kept()\n"
    project.models(VERSIONED + LETTERS, native_versioning=True)
    before = project.migrate(show)
    without = LETTERS.replace("    __versioned__ = {}\n", "")
    project.models(VERSIONED + without, native_versioning=True)
    assert len(project.migrate(show)) < len(before)
    project.models(VERSIONED + LETTERS, native_versioning=True)
    assert project.run("downgrade -1", "same", script=show) == before


@pytest.mark.backends("mariadb")
def test_triggers_follow_what_foreign_keys_cascade(project: Project) -> None:
    """Triggers of tables without a history, from which a change cascades to one that has it."""
    models = textwrap.dedent("""
        class User(Base):
            __tablename__ = "user"
            id = mapped_column(sa.Integer, primary_key=True)
        class Blog(Base):
            __tablename__ = "blog"
            id = mapped_column(sa.Integer, primary_key=True)
            user_id = mapped_column(sa.ForeignKey("user.id", name="blog_user"))
        class Post(Base):
            __tablename__ = "post"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
            blog_id = mapped_column(sa.ForeignKey("blog.id", name="post_blog", ondelete="CASCADE"))
        """)
    names = OUTSIDE + "found += [text.split()[0] for text in kept() if '_before_' in text]\n"
    few = ["history_before_delete_blog_post"]
    project.models(models, native_versioning=True)
    assert project.migrate(names) == few
    cascading = models.replace('name="blog_user"', 'name="blog_user", ondelete="CASCADE"')
    project.models(cascading, native_versioning=True)
    found = project.migrate(
        names
        + textwrap.dedent("""
        outside(
            "INSERT INTO user VALUES (1)", "INSERT INTO blog VALUES (2, 1)",
            "INSERT INTO post VALUES (3, 2)", "DELETE FROM user",
        )
        PV = h.version_class(Post)
        found += session.scalars(sa.select(PV.operation_type).order_by(PV.transaction_id))
        """)
    )
    assert found == [*few, "history_before_delete_user_post", 0, 2]
    project.models(models, native_versioning=True)
    assert project.run("downgrade -1", "same", script=names) == few
    project.models(cascading)
    project.run("upgrade head")
    assert project.migrate(names) == []


@pytest.mark.options(native_versioning=True)
def test_triggers_made_by_a_migration_are_those_of_the_models(
    versioning: Any, Base: Any, engine: Engine
) -> None:
    """The tables of a database tell as much as the models, whatever the types of columns."""
    collation = {"sqlite": "NOCASE", "postgresql": "C"}.get(engine.dialect.name, "utf8mb4_bin")

    class User(Base):
        __tablename__ = "user"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        kind = mapped_column(sa.String(20))
        user_id = mapped_column(sa.ForeignKey("user.id", ondelete="CASCADE"))
        editor_id = mapped_column(sa.ForeignKey("user.id", ondelete="SET NULL"))
        title = mapped_column(sa.String(20, collation=collation))
        text = mapped_column(sa.Text)
        number = mapped_column(sa.Numeric(10, 2))
        at = mapped_column(sa.DateTime(timezone=True))
        data = mapped_column(sa.JSON)
        content = mapped_column(sa.LargeBinary)
        color = mapped_column(sa.Enum("red", "blue", name="color"))
        token = mapped_column(sa.Uuid)
        lasts = mapped_column(sa.Interval)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "article"}

    class Letter(Article):
        __tablename__ = "letter"
        id = mapped_column(sa.ForeignKey("article.id", ondelete="CASCADE"), primary_key=True)
        stamp = mapped_column("st%mp", sa.Boolean)
        __mapper_args__ = {"polymorphic_identity": "letter"}

    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        drop_triggers(connection, Letter)
        drop_triggers(connection, User)
        op = Operations(MigrationContext.configure(connection))
        op.create_history_triggers("user")
        op.create_history_triggers(["article", "letter"])
        assert triggers_are_current(connection, User)
        assert triggers_are_current(connection, Letter)


@pytest.mark.backends("sqlite")
def test_what_triggers_keep_is_left_alone(project: Project) -> None:
    """A table that triggers have made for themselves is not one to be dropped."""
    project.models(VERSIONED)
    project.migrate()
    project.run("check", script="session.execute(sa.text('CREATE TABLE t (history__tx INTEGER)'))")
    project.run("check")


@pytest.mark.backends("postgresql")
def test_a_table_in_another_schema_becomes_versioned(project: Project) -> None:
    """Its versions lie beside it; the transactions stay where they are."""
    head = 'CONFIGURE = {"include_schemas": True}\n'

    def other(models: str) -> str:
        line = '    __tablename__ = "article"\n'
        return head + models.replace(line, f'{line}    __table_args__ = {{"schema": "other"}}\n')

    project.models(other(PLAIN))
    project.migrate("session.add(Article(id=1, title='a'))")
    project.models(other(VERSIONED), native_versioning=True)
    found = project.migrate(OUTSIDE + "outside(\"UPDATE other.article SET title = 'b'\")\n" + SHOW)
    assert found == [[0, "a", None], [1, "b", None], []]
    project.models(other(PLAIN))
    assert project.run("downgrade -1", script=OUTSIDE + "found += kept()\n") == []
    project.run("upgrade head")


def test_the_user_of_a_transaction_comes_and_goes(project: Project) -> None:
    """With a naming convention the foreign key of user_cls has a name, also for SQLite."""
    convention = '{"fk": "fk_%(table_name)s_%(column_0_name)s"}'
    base = f"Base(DeclarativeBase):\n    metadata = sa.MetaData(naming_convention={convention})"
    project.head = project.head.replace("Base(DeclarativeBase):\n    pass", base)
    user = textwrap.dedent("""
        class User(Base):
            __tablename__ = "user"
            id = mapped_column(sa.Integer, primary_key=True)
        """)
    project.models(VERSIONED + user)
    project.migrate("session.add(Article(id=1, title='a'))")
    project.models(VERSIONED + user, user_cls="User")
    found = project.migrate(
        """
        session.add(User(id=5))
        session.flush()
        with h.transaction_context(user_id=5):
            session.get(Article, 1).title = "b"
            session.commit()
        found += session.scalars(sa.select(h.transaction_class(Article).user_id)).all()
        """
    )
    assert found == [None, 5]
    project.models(VERSIONED + user)
    project.migrate()
    project.models(VERSIONED + user, user_cls="User")
    project.run("downgrade -1", "same")
    project.models(VERSIONED + user)
    project.run("downgrade -1", "same")


@pytest.mark.backends("postgresql")
def test_a_history_in_a_schema_of_its_own(project: Project) -> None:
    """Option schema: operations find the versions there, up and down."""
    head = 'CONFIGURE = {"include_schemas": True}\n'
    rated = (
        VERSIONED + "    rating = mapped_column(sa.Integer, nullable=False, server_default='3')\n"
    )
    project.models(head + PLAIN)
    project.migrate("session.add(Article(id=1, title='old'))")
    project.models(head + VERSIONED, schema="other", native_versioning=True)
    assert project.migrate(SHOW) == [[0, "old", None], []]
    project.models(head + rated, schema="other", native_versioning=True)
    found = project.migrate("session.get(Article, 1).title = 'new'\nsession.commit()\n" + SHOW)
    assert found == [[0, "old", None], [1, "new", None], []]
    headline = rated.replace(
        "title = mapped_column(sa.String(50))",
        "headline = mapped_column(sa.String(50), info={'renamed_from': 'title'})",
    )
    renamed = headline.replace(
        '"article"', '"post"\n    __table_args__ = {"info": {"renamed_from": "article"}}'
    )
    project.models(head + headline, schema="other", native_versioning=True)
    project.migrate()
    project.models(head + renamed, schema="other", native_versioning=True)
    found = project.migrate(SHOW.replace("v.title", "v.headline"))
    assert found == [[0, "old", None], [1, "new", None], []]
    unversioned = renamed.replace("    __versioned__ = {}\n", "")
    project.models(head + unversioned)
    project.migrate()
    project.models(head + renamed, schema="other", native_versioning=True)
    found = project.run("downgrade -1", script=SHOW.replace("v.title", "v.headline"))
    assert found == [[0, "new", None], []]
    project.models(head + PLAIN)
    project.run("downgrade 01")
    project.models(head + unversioned)
    project.run("upgrade head", "check")


def test_an_older_alembic() -> None:
    """With an Alembic that is too old, the import says which one it takes."""
    code = "import alembic; alembic.__version__ = '1.17.2'; import sqlalchemy_history.ext.alembic"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Alembic 1.18 or newer: pip install" in done.stderr
