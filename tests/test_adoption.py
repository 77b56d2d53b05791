"""A database that one of the peers has written opens unchanged, reads the same, and goes on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations.ops import DropIndexOp
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

import sqlalchemy_history as h
import sqlalchemy_history.ext.alembic
import support
from adoption import environments, model

pytestmark = [
    pytest.mark.sqlite_file,
    pytest.mark.timeout(600),  # the first run makes the environments
]


@pytest.fixture(params=list(environments.PEERS))
def peer(request: pytest.FixtureRequest) -> str:
    """The import name of the library that has written the database."""
    return request.param


@pytest.fixture
def user_cls() -> str:
    return "User"


@pytest.fixture
def read_by_peer(
    request: pytest.FixtureRequest, peer: str, engine: Engine, strategy: str
) -> dict[str, Any]:
    """The database of `engine` is written by the peer; what it reads there itself."""
    assert request.config.cache is not None
    try:
        python = environments.python_of(peer, request.config.cache.mkdir("peers"))
    except environments.Offline as error:
        if support.in_ci():
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    url = engine.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [str(python), "peer.py", peer, url, strategy],
        cwd=Path(model.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def models(read_by_peer: Any, versioning: Any, Base: Any) -> SimpleNamespace:
    """The same models, with our versioning."""
    found = model.declare(Base)
    sa.orm.configure_mappers()
    return found


#: what the peers read wrong: `.index` counts the versions of all objects, and the changeset of a
#: row that came back after a DELETE is against what it was deleted with
_OURS = {"index", "changeset"}


def test_what_was_written_reads_the_same(
    models: SimpleNamespace, engine: Engine, read_by_peer: dict[str, Any]
) -> None:
    """Values, changesets, neighbours, transactions and relationships are those the peer shows."""
    with Session(engine) as session:
        found = model.read(session, models, h.version_class)
    for name, versions in found.items():
        assert len(versions) == len(read_by_peer[name])
        came_back = False
        for ours, theirs in zip(versions, read_by_peer[name], strict=True):
            wrong = _OURS if came_back else {"index"}
            assert {k: v for k, v in ours.items() if k not in wrong} == {
                k: v for k, v in theirs.items() if k not in wrong
            }
            came_back = ours["operation"] == h.Operation.DELETE and ours["next"] is not None
    assert [post["index"] for post in found["Post"]] == [0, 1, 2, 3, 0, 1]


@pytest.mark.backends("sqlite")
def test_nothing_is_changed_by_opening(
    models: SimpleNamespace, Base: Any, engine: Engine, read_by_peer: dict[str, Any]
) -> None:
    """Tables and columns are those that we would make; `create_all()` adds none."""
    assert read_by_peer
    with engine.connect() as connection:
        before = _columns(connection)
        assert before == {
            table.name: {column.name for column in table.c}
            for table in Base.metadata.tables.values()
        }
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        assert _columns(connection) == before


def _columns(connection: sa.Connection) -> dict[str, set[str]]:
    inspector = sa.inspect(connection)
    return {
        table: {column["name"] for column in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }


@pytest.mark.backends("postgresql")
@pytest.mark.options(indexes="compatible", unique_open=False)
@pytest.mark.parametrize("strategy", ["validity"])
def test_autogenerate_finds_the_peers_indexes(
    models: SimpleNamespace, Base: Any, engine: Engine, peer: str
) -> None:
    """With these options all that differs is what SQLAlchemy-Continuum adds on its own."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        found = produce_migrations(context, Base.metadata).upgrade_ops
        assert found is not None
        changes = [change for table in found.ops for change in getattr(table, "ops", [table])]
    names = {change.index_name for change in changes if isinstance(change, DropIndexOp)}
    assert len(changes) == sum(isinstance(change, DropIndexOp) for change in changes)
    own = ("_pk_transaction_id", "_pk_validity")
    assert all(name.endswith(own) for name in names)
    assert bool(names) == (peer == "sqlalchemy_continuum")


@pytest.mark.parametrize("strategy", ["validity"])
def test_history_goes_on(
    models: SimpleNamespace, engine: Engine, read_by_peer: dict[str, Any]
) -> None:
    """New versions follow the old ones: with links made and cut again, deletes and reverts."""
    with Session(engine) as session:
        post, red, blue = (
            session.get(cls, key)
            for cls, key in ((models.Post, 1), (models.Tag, 1), (models.Tag, 2))
        )
        last = read_by_peer["Post"][3]["transaction"]
        for change in (
            lambda: (setattr(post, "title", "fourth"), post.tags.append(red)),
            lambda: post.tags.remove(red),
            lambda: post.versions[0].revert(),
            lambda: session.delete(session.get(models.Price, ("de", 2))),
            lambda: session.add(models.Comment(id=1, text="again", post=post)),
            lambda: post.tags.remove(blue),
        ):
            change()
            session.commit()
        titles = [(v.operation_type, v.title) for v in post.versions]
        assert titles == [
            (0, "first"),
            (1, "second"),
            (1, "second"),
            (1, "third"),
            (1, "fourth"),
            (1, "first"),
        ]
        new = [
            tx.id
            for tx in session.scalars(
                sa.select(h.transaction_class(models.Post))
                .where(h.transaction_class(models.Post).id > last)
                .order_by(sa.text("id"))
            )
        ]
        assert len(new) == 6
        tags = [
            sorted(tag.name for v in session.scalars(h.as_of(models.Post, at)) for tag in v.tags)
            for at in new
        ]
        assert tags == [["blue", "crimson"], ["blue"], ["blue"], ["blue"], ["blue"], []]
        assert [
            v.operation_type
            for v in session.scalars(
                sa.select(h.version_class(models.Comment)).order_by(sa.text("transaction_id"))
            )
        ] == [0, 1, 2, 0]


@pytest.mark.backends("sqlite")
def test_history_verifies(
    models: SimpleNamespace, engine: Engine, peer: str, strategy: str
) -> None:
    """What the peers leave broken is found and mended; nothing is read differently then."""
    classes = [models.Post, models.Tag, models.Comment, models.Price, models.Letter]
    with Session(engine) as session:
        before = model.read(session, models, h.version_class)
        damaged = {
            (finding.kind, finding.table)
            for cls in classes
            for finding in h.verify(session, cls)
            if finding.severity != "note"
        }
        never_ended = peer == "sqlalchemy_continuum" and strategy == "validity"
        assert damaged == ({("two open versions", "post_tag_version")} if never_ended else set())
        for cls in classes:
            h.repair(session, cls)
        session.commit()
        assert [f for cls in classes for f in h.verify(session, cls) if f.severity != "note"] == []
        session.expire_all()
        assert model.read(session, models, h.version_class) == before
