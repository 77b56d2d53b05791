"""Migrations that Alembic's autogenerate writes carry history along: up, down, and checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Engine

import sqlalchemy_history

pytestmark = [pytest.mark.sqlite_file, pytest.mark.timeout(300)]

ENV = """
from alembic import context
import sqlalchemy as sa
import sqlalchemy_history.ext.alembic
import models

engine = sa.create_engine(context.config.get_main_option("url"))
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        render_as_batch=engine.dialect.name == "sqlite",
        **getattr(models, "CONFIGURE", {}),
    )
    with context.begin_transaction():
        context.run_migrations()
"""

TEMPLATE = '''
"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''

HEAD = """
import enum
from typing import Any
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, mapped_column, relationship
from sqlalchemy_history import make_versioned

make_versioned(user_cls=None, options={options!r})

class Base(DeclarativeBase):
    pass

class Color(enum.Enum):
    red = 1
    blue = 2
"""

# Runs Alembic's command line in a fresh process, then what a test says, in a session.
RUN = """
import json, sys
from alembic.config import main
commands, script, url = json.loads(sys.argv[1])
same = commands[-1:] == [["same"]]
for command in commands[:-1] if same else commands:
    main(["-c", "alembic.ini", *command])
import sqlalchemy as sa
from sqlalchemy.orm import Session, configure_mappers
import sqlalchemy_history as h
import models
configure_mappers()
found = []
if same:
    # what "alembic check" does, which refuses a database that is not at the newest revision
    from alembic.autogenerate import produce_migrations
    from alembic.migration import MigrationContext
    with sa.create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection)
        differences = produce_migrations(context, models.Base.metadata).upgrade_ops
        assert differences.is_empty(), differences.as_diffs()
with Session(sa.create_engine(url)) as session:
    exec(script, {**vars(models), "session": session, "h": h, "sa": sa, "found": found})
    session.commit()
print("found:" + json.dumps(found))
"""


class Project:
    """A project in a folder of its own, with Alembic set up by hand-written files."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder = folder
        self._url = engine.url.render_as_string(hide_password=False)
        (folder / "migrations" / "versions").mkdir(parents=True)
        (folder / "migrations" / "env.py").write_text(ENV)
        (folder / "migrations" / "script.py.mako").write_text(TEMPLATE)
        ini = f"[alembic]\nscript_location = migrations\nurl = {self._url.replace('%', '%%')}\n"
        (folder / "alembic.ini").write_text(ini)

    def models(self, text: str, **options: Any) -> None:
        """What `models.py` says from now on."""
        head = HEAD.replace("{options!r}", repr(options))
        (self.folder / "models.py").write_text(head + textwrap.dedent(text))

    def run(self, *commands: str, script: str = "", fails: bool = False) -> Any:
        """Run commands of Alembic, then `script`; what that has appended to `found`."""
        package = Path(sqlalchemy_history.__file__).parent.parent
        arguments = json.dumps([[c.split() for c in commands], textwrap.dedent(script), self._url])
        done = subprocess.run(
            [sys.executable, "-B", "-W", "error", "-c", RUN, arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(self.folder)])},
            capture_output=True,
            text=True,
            check=False,
        )
        if fails:
            assert done.returncode != 0
            return done.stdout + done.stderr
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.last_revision()}"
        return json.loads(done.stdout.rpartition("found:")[2])

    def migrate(self, script: str = "") -> Any:
        """Autogenerate a revision, run it; a second autogenerate would be empty."""
        return self.run(
            f"revision --autogenerate --rev-id {self.count() + 1:02}",
            "upgrade head",
            "check",
            script=script,
        )

    def count(self) -> int:
        return len(list((self.folder / "migrations" / "versions").glob("*.py")))

    def last_revision(self) -> str:
        """The text of the newest revision."""
        files = sorted((self.folder / "migrations" / "versions").glob("*.py"))
        return files[-1].read_text() if files else ""


@pytest.fixture
def project(tmp_path: Path, engine: Engine) -> Project:
    return Project(tmp_path / "project", engine)


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


@pytest.mark.backends("sqlite")
def test_written_by_hand(project: Project) -> None:
    """Operations for migrations that are not generated; without a connection they say so."""
    project.models(VERSIONED)
    project.migrate("session.add(Article(id=1, title='a'))")
    revision = project.folder / "migrations" / "versions" / "02_by_hand.py"
    revision.write_text(
        textwrap.dedent("""
        from alembic import op
        import sqlalchemy as sa
        revision, down_revision = "02", "01"

        def upgrade():
            op.drop_versions("article")
            op.execute("UPDATE article SET title = 'b'")
            op.backfill_versions("article")
            op.alter_versioned_column("article", "title", type_=sa.String(90), nullable=False)

        def downgrade():
            op.alter_versioned_column("article", "title", type_=sa.String(50), nullable=True)
        """)
    )
    assert "without --sql" in project.run("upgrade 01:02 --sql", fails=True)
    wider = VERSIONED.replace("sa.String(50)", "sa.String(90), nullable=False")
    project.models(wider)
    assert project.run("upgrade head", "check", script=SHOW) == [[0, "b", None], []]
    project.models(VERSIONED)
    project.run("downgrade -1", "same")
