"""Laws of the Flask plugin, with Flask, Flask-Login, Flask-SQLAlchemy and an HTTP client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from flask import Flask, request
from flask_login import LoginManager, UserMixin, login_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.pool import StaticPool

from sqlalchemy_history import TransactionFactory, transaction_context
from sqlalchemy_history.ext.flask import FlaskPlugin
from test_quickstart import run

pytestmark = pytest.mark.backends("sqlite")


@pytest.fixture
def plugins() -> list[Any]:
    return [FlaskPlugin()]


@pytest.fixture
def user_cls() -> str:
    return "User"


@pytest.fixture
def models(versioning: Any, Base: Any) -> Any:
    class User(UserMixin, Base):
        __tablename__ = "app_user"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = mapped_column(sa.String(20))

    return User, Note


@pytest.fixture
def open_app(models: Any, open_session: Any) -> Callable[..., Any]:
    """``open_app()`` returns a session and a function that opens clients of an app around it."""
    User, Note = models

    def open_one(with_login: bool = True) -> Any:
        session = open_session()
        session.add_all([User(), User()])
        session.commit()
        app = Flask(__name__)
        app.secret_key = "test"
        if with_login:
            login = LoginManager(app)
            login.user_loader(lambda identity: session.get(User, int(identity)))

        @app.post("/login/<int:identity>")
        def log_in(identity: int) -> Any:
            login_user(session.get(User, identity))
            return {}

        @app.post("/notes")
        def save() -> Any:
            for text in request.get_json():
                session.add(Note(text=text))
                session.commit()
            return {}

        def client(address: str) -> httpx.Client:
            transport = httpx.WSGITransport(app=app, remote_addr=address)
            return httpx.Client(transport=transport, base_url="http://test")

        return session, client

    return open_one


def written(session: Any, versioning: Any) -> list[tuple[Any, Any]]:
    cls = versioning.transaction_cls
    return [
        tuple(r) for r in session.execute(sa.select(cls.user_id, cls.remote_addr).order_by(cls.id))
    ]


def post(client: httpx.Client, path: str, *texts: str) -> None:
    client.post(path, json=list(texts)).raise_for_status()


def test_transactions_of_a_request_know_user_and_address(open_app: Any, versioning: Any) -> None:
    """Each commit of a request has Flask-Login's user, if somebody logged in, and the address."""
    session, client = open_app()
    with client("10.0.0.1") as ann, client("10.0.0.2") as nobody:
        post(ann, "/login/2")
        post(ann, "/notes", "a", "b")
        post(nobody, "/notes", "c")
    assert written(session, versioning) == [(2, "10.0.0.1"), (2, "10.0.0.1"), (None, "10.0.0.2")]


def test_app_without_flask_login(open_app: Any, versioning: Any) -> None:
    """Where Flask-Login is not set up, the address is known all the same."""
    session, client = open_app(with_login=False)
    with client("10.0.0.1") as one:
        post(one, "/notes", "a")
    assert written(session, versioning) == [(None, "10.0.0.1")]


def test_outside_of_a_request_the_plugin_says_nothing(
    open_app: Any, versioning: Any, models: Any
) -> None:
    """A job has the context that it gives itself, and that wins inside of a request too."""
    session, client = open_app()
    session.add(models[1](text="job"))
    session.commit()
    with transaction_context(user_id=1), client("10.0.0.1") as one:
        post(one, "/login/2")
        post(one, "/notes", "a")
    assert written(session, versioning) == [(None, None), (1, "10.0.0.1")]


def test_factories_say_it_otherwise(open_app: Any, versioning: Any) -> None:
    """current_user_id_factory and remote_addr_factory take the place of Flask-Login and Flask."""
    versioning.plugins = [FlaskPlugin(lambda: 1, lambda: request.headers["x-forwarded-for"])]
    session, client = open_app()
    with client("10.0.0.1") as one:
        one.headers["x-forwarded-for"] = "192.168.0.1"
        post(one, "/notes", "a")
    assert written(session, versioning) == [(1, "192.168.0.1")]


def test_columns_that_were_left_out_are_not_asked_for(versioning: Any, open_app: Any) -> None:
    """A Transaction class without remote_addr is no error, and the factory is not called."""
    versioning.transaction_cls = TransactionFactory(remote_addr=False)
    versioning.plugins = [FlaskPlugin(remote_addr_factory=lambda: pytest.fail("was asked"))]
    session, client = open_app()
    with client("10.0.0.1") as one:
        post(one, "/login/2")
        post(one, "/notes", "a")
    cls = versioning.transaction_cls
    assert session.scalars(sa.select(cls.user_id)).all() == [2]


@pytest.fixture
def wiki(versioning: Any, Base: Any) -> Iterator[Any]:
    db = SQLAlchemy(model_class=type("Base", (sa.orm.DeclarativeBase,), {}))

    class User(UserMixin, db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)

    class Page(db.Model):
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str]

    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": StaticPool}
    db.init_app(app)

    @app.post("/")
    def save() -> Any:
        db.session.add(Page(text=request.get_data(as_text=True)))
        db.session.commit()
        return {}

    @app.get("/")
    def history() -> Any:
        page = db.session.scalars(sa.select(Page)).one()
        return [[v.text, v.transaction.remote_addr] for v in page.versions]

    with app.app_context():
        db.create_all()
        yield app
        db.session.remove()
        db.engine.dispose()
    db.Model.registry.dispose(cascade=True)


def test_flask_sqlalchemy(wiki: Any) -> None:
    """Models and sessions of Flask-SQLAlchemy are versioned, create_all() makes all tables."""
    transport = httpx.WSGITransport(app=wiki, remote_addr="10.0.0.1")
    with httpx.Client(transport=transport, base_url="http://test") as client:
        client.post("/", content="Hello").raise_for_status()
        assert client.get("/").json() == [["Hello", "10.0.0.1"]]


def test_missing_flask_is_an_error_that_says_what_to_install() -> None:
    """Without Flask, the import fails and names the extra."""
    code = "import sys; sys.modules['flask'] = None; import sqlalchemy_history.ext.flask"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "sqlalchemy-history-next[flask]" in done.stderr.splitlines()[-1]


def test_example_prints_who_wrote_what() -> None:
    """The example application runs with one command."""
    assert run("docs/examples/flask_app.py") == [
        "at first: Hello",
        "ann at 10.0.0.1: Hello",
        "bob at 10.0.0.2: Buy pills",
        "ann at 10.0.0.1: Hello",
    ]
