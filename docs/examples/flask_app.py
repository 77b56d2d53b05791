"""A wiki in Flask that knows who changed what: Flask-SQLAlchemy, Flask-Login and FlaskPlugin.

pip install flask flask-sqlalchemy flask-login httpx
python docs/examples/flask_app.py                    # a short conversation with it
flask --app docs/examples/flask_app.py run           # or serve it
"""

from __future__ import annotations

from typing import Any

from flask import Flask, request
from flask_login import LoginManager, UserMixin, login_required, login_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import StaticPool

from sqlalchemy_history import as_of, make_versioned
from sqlalchemy_history.ext.flask import FlaskPlugin

make_versioned(plugins=[FlaskPlugin()], user_cls="User")


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
login = LoginManager()


class User(UserMixin, db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Page(db.Model):
    __versioned__: dict[str, Any] = {}

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    text: Mapped[str]


@login.user_loader
def load_user(identity: str) -> User | None:
    return db.session.get(User, int(identity))


app = Flask(__name__)
app.config["SECRET_KEY"] = "only for this example"  # noqa: S105
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": StaticPool}
db.init_app(app)
login.init_app(app)
with app.app_context():
    db.create_all()
    db.session.add_all([User(name="ann"), User(name="bob")])
    db.session.commit()


@app.post("/login/<name>")
def log_in(name: str) -> dict[str, str]:
    login_user(db.session.scalars(select(User).where(User.name == name)).one())
    return {"hello": name}


@app.put("/pages/<title>")
@login_required
def save(title: str) -> dict[str, str]:
    page = db.session.scalars(select(Page).where(Page.title == title)).one_or_none()
    if page is None:
        page = Page(title=title, text="")
        db.session.add(page)
    page.text = request.get_data(as_text=True)
    db.session.commit()
    return {"saved": title}


@app.get("/pages/<title>")
def show(title: str) -> dict[str, str]:
    """Show the page as it is, or with ``?at=`` as a transaction left it."""
    at = request.args.get("at", type=int)
    statement = select(Page) if at is None else as_of(Page, at)
    return {"text": db.one_or_404(statement.filter_by(title=title)).text}


@app.post("/pages/<title>/revert")
@login_required
def revert(title: str) -> dict[str, str]:
    version = db.one_or_404(as_of(Page, request.args.get("to", type=int)).filter_by(title=title))
    version.revert()
    db.session.commit()
    return {"saved": title}


@app.get("/pages/<title>/history")
def history(title: str) -> list[dict[str, Any]]:
    page = db.session.scalars(select(Page).where(Page.title == title)).one()
    return [
        {
            "transaction": version.transaction_id,
            "text": version.text,
            "by": version.transaction.user.name,
            "from": version.transaction.remote_addr,
        }
        for version in page.versions
    ]


def main() -> None:
    import httpx  # noqa: PLC0415 - the server needs none

    def client_at(address: str) -> httpx.Client:
        transport = httpx.WSGITransport(app=app, remote_addr=address)
        return httpx.Client(transport=transport, base_url="http://wiki")

    with client_at("10.0.0.1") as ann, client_at("10.0.0.2") as bob:
        ann.post("/login/ann").raise_for_status()
        bob.post("/login/bob").raise_for_status()
        ann.put("/pages/Home", content="Hello").raise_for_status()
        bob.put("/pages/Home", content="Buy pills").raise_for_status()
        first = ann.get("/pages/Home/history").json()[0]["transaction"]
        print(f"at first: {ann.get(f'/pages/Home?at={first}').json()['text']}")
        ann.post(f"/pages/Home/revert?to={first}").raise_for_status()
        found = ann.get("/pages/Home/history").json()
    for version in found:
        print(f"{version['by']} at {version['from']}: {version['text']}")


if __name__ == "__main__":
    main()
