"""The declarative bases of other packages: Flask-SQLAlchemy, Advanced Alchemy, SQLModel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.model import Model
from sqlalchemy.orm import (
    DeclarativeBase,
    DeclarativeBaseNoMeta,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    relationship,
)
from sqlalchemy.pool import StaticPool

from sqlalchemy_history import as_of, transaction_class, verify, version_class, version_table

pytestmark = pytest.mark.backends("sqlite")


@pytest.fixture
def strategy() -> str:
    return "validity"


def names(versions: Any) -> list[Any]:
    return [version.name for version in versions]


class TestFlaskSQLAlchemy:
    """``db = SQLAlchemy()``, ``class Article(db.Model)``."""

    @pytest.fixture(
        params=[
            (Model,),
            (DeclarativeBase,),
            (DeclarativeBaseNoMeta,),
            (MappedAsDataclass, DeclarativeBase),
        ],
        ids=lambda bases: "+".join(base.__name__ for base in bases),
    )
    def db(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        [*bases] = request.param
        try:
            db: Any = SQLAlchemy(
                model_class=Model if bases == [Model] else type("Base", tuple(bases), {})
            )
        except sa.exc.InvalidRequestError as error:
            pytest.skip(f"Flask-SQLAlchemy cannot make this base with this SQLAlchemy: {error}")
        yield db
        db.Model.registry.dispose(cascade=True)

    @pytest.fixture
    def app(self, db: Any) -> Iterator[Any]:
        app = Flask(__name__)
        memory = {"url": "sqlite://", "poolclass": StaticPool}
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        app.config["SQLALCHEMY_BINDS"] = {"archive": dict(memory)}
        db.init_app(app)
        with app.app_context():
            yield app
            db.session.remove()
            for engine in db.engines.values():
                engine.dispose()

    @staticmethod
    def model(db: Any, name: str, **namespace: Any) -> Any:
        annotations = {"id": Mapped[int], "name": Mapped[str | None]}
        return type(
            name,
            (db.Model,),
            {
                "__module__": __name__,
                "__versioned__": {},
                "__annotations__": annotations,
                "id": mapped_column(primary_key=True),
                "name": mapped_column(sa.String(20)),
                **namespace,
            },
        )

    def test_history(self, versioning: Any, db: Any, app: Any) -> None:
        """Every model class that the extension takes is recorded through ``db.session``."""
        Article = self.model(db, "Article")
        db.create_all()
        article = Article(id=1, name="a")
        db.session.add(article)
        db.session.commit()
        article.name = "b"
        db.session.commit()
        assert names(article.versions) == ["a", "b"]
        assert names(db.session.scalars(as_of(Article, 1))) == ["a"]
        article.versions[0].revert()
        db.session.commit()
        assert (article.name, article.versions.count()) == ("a", 3)
        assert version_table(Article.__table__).name == "article_version"

    def test_binds(self, versioning: Any, db: Any, app: Any) -> None:
        """A model with a ``__bind_key__`` has its history, transactions included, in that database."""
        Article = self.model(db, "Article")
        Report = self.model(db, "Report", __bind_key__="archive")
        db.create_all()
        tables = sa.inspect(db.engines["archive"]).get_table_names()
        assert sorted(tables) == ["report", "report_version", "transaction"]
        db.session.add(Article(id=1, name="a"))
        db.session.commit()
        report = Report(id=1, name="r")
        db.session.add(report)
        db.session.commit()
        [version] = report.versions
        assert version.name == "r"
        db.session.expunge_all()
        version = db.session.scalars(sa.select(version_class(Report))).one()
        with db.engines["archive"].connect() as connection:
            issued_at = connection.scalar(sa.select(transaction_class(Report).issued_at))
        assert version.transaction.issued_at == issued_at
        assert verify(db.session, Article) == verify(db.session, Report) == []


class TestAdvancedAlchemy:
    """Its bases bring keys, audit columns, sentinels, naming rules and methods of their own."""

    @pytest.fixture(
        params=[
            "BigIntBase",
            "BigIntAuditBase",
            "IdentityAuditBase",
            "UUIDAuditBase",
            "UUIDv7AuditBase",
            "DefaultBase",
        ]
    )
    def base(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        module = pytest.importorskip("advanced_alchemy.base")
        base = getattr(module, request.param)
        yield base
        # one registry and one MetaData for all bases of the package
        base.registry.dispose(cascade=True)
        base.metadata.clear()

    @staticmethod
    def models(base: Any, **options: Any) -> Any:
        def model(name: str, **namespace: Any) -> Any:
            if base.__name__ == "DefaultBase":  # the one without a key
                namespace["id"] = mapped_column(sa.Integer, primary_key=True)
            namespace |= {"__versioned__": options, "name": mapped_column(sa.String(20))}
            return type(name, (base,), namespace)

        Author = model("Author")
        author_id = mapped_column(sa.ForeignKey("author.id"))
        return Author, model("Article", author_id=author_id, author=relationship(Author))

    def test_history(self, versioning: Any, base: Any, engine: sa.Engine) -> None:
        """A model of each base is recorded, read as of a moment and reverted, with its relations."""
        Author, Article = self.models(base)
        base.metadata.create_all(engine)
        with Session(engine) as session:
            article = Article(name="a", author=Author(name="x"))
            session.add(article)
            session.commit()
            article.name, article.author.name = "b", "y"
            session.commit()
            one, two = article.versions
            assert names([one, two]) == ["a", "b"]
            assert {"name"} <= two.changeset.keys() <= {"name", "updated_at"}
            then = session.scalars(as_of(Article, one.transaction_id)).one()
            assert (then.name, then.author.name) == ("a", "x")
            one.revert(relations=["author"])
            session.commit()
            assert (article.name, article.author.name) == ("a", "x")
            session.delete(article)
            session.commit()
            one.revert()
            session.commit()
            assert session.get(Article, one.id).name == "a"

    def test_columns_of_the_base(self, versioning: Any, base: Any) -> None:
        """What the base adds is in the version table, as name and type alone."""
        _, Article = self.models(base)
        table = version_table(Article.__table__)
        own = {"transaction_id", "end_transaction_id", "operation_type"}
        assert set(table.c.keys()) - own == set(Article.__table__.c.keys())
        for column in table.c:
            assert (column.default, column.onupdate, column.server_default) == (None, None, None)

    def test_methods_of_the_base(self, versioning: Any, base: Any, engine: sa.Engine) -> None:
        """`base_classes` gives versions the methods of the base, such as ``to_dict()``."""
        methods = pytest.importorskip("advanced_alchemy.base").BasicAttributes
        Author, _ = self.models(base, base_classes=(methods,))
        base.metadata.create_all(engine)
        with Session(engine) as session:
            author = Author(name="a")
            session.add(author)
            session.commit()
            assert author.versions[0].to_dict()["name"] == "a"


class TestSQLModel:
    """``class Article(SQLModel, table=True)``."""

    @pytest.fixture
    def models(self, versioning: Any) -> Iterator[Any]:
        sqlmodel = pytest.importorskip("sqlmodel")
        field = sqlmodel.Field
        reg = sa.orm.registry()

        class Base(sqlmodel.SQLModel, registry=reg):  # type: ignore[misc, name-defined, call-arg]
            pass

        def model(name: str, annotations: dict[str, Any], **namespace: Any) -> Any:
            namespace |= {
                "__annotations__": annotations,
                "__versioned__": {},
                "__module__": __name__,
                "__qualname__": name,
                "id": field(default=None, primary_key=True),
            }
            return type(Base)(name, (Base,), namespace, table=True)

        Author = model("Author", {"id": int | None, "name": str})
        Article = model(
            "Article",
            {"id": int | None, "name": str, "author_id": int | None, "author": Author},
            author_id=field(default=None, foreign_key="author.id"),
            author=sqlmodel.Relationship(),
        )
        yield Author, Article
        reg.dispose(cascade=True)

    def test_relationships(self, models: Any, engine: sa.Engine) -> None:
        """Relationships of SQLModel show their past, and sessions of SQLModel record."""
        Author, Article = models
        Article.metadata.create_all(engine)
        with pytest.importorskip("sqlmodel").Session(engine) as session:
            article = Article(name="a", author=Author(name="x"))
            session.add(article)
            session.commit()
            article.author.name = "y"
            session.commit()
            statement = pytest.importorskip("sqlmodel").select(version_class(Article))
            then = session.exec(as_of(statement, 1)).one()
            assert (then.name, then.author.name) == ("a", "x")
            assert names(article.author.versions) == ["x", "y"]

    def test_it_is_validated_and_dumped_as_before(self, models: Any, engine: sa.Engine) -> None:
        """``versions`` is no field: pydantic's views of a model are what they were."""
        Author, Article = models
        assert transaction_class(Article) is transaction_class(Author)
        assert set(Article.model_fields) == {"id", "name", "author_id"}
        article = Article(id=1, name="a")
        assert article.model_dump() == {"id": 1, "name": "a", "author_id": None}
        assert Article.model_validate({"name": "b"}).name == "b"
