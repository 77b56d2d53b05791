"""Version tables: columns, types, keys and indexes, and that nothing else of the parent is copied."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, mapped_column, relationship

import support
from sqlalchemy_history import TableNotVersioned, parent_table, version_class, version_table
from sqlalchemy_history.schema import update_end_tx_column, update_property_mod_flags


class Color(enum.Enum):
    red = 1
    blue = 2


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    """A model with everything that a version table must not have."""

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        __table_args__ = (
            sa.CheckConstraint("size > 0", name="size_is_positive"),
            sa.UniqueConstraint("slug", name="uq_slug"),
            sa.Index("ix_article_slug_size", "slug", "size"),
        )
        id: Mapped[int] = mapped_column(sa.Identity(start=10), primary_key=True)
        slug: Mapped[str] = mapped_column(sa.String(20), unique=True, index=True, nullable=False)
        size: Mapped[int] = mapped_column(server_default="5", nullable=False)
        stamp: Mapped[int] = mapped_column(default=1, onupdate=lambda: 2)
        twice: Mapped[int] = mapped_column(sa.Integer, sa.Computed("size * 2", persisted=True))
        is_open: Mapped[bool] = mapped_column(
            sa.Boolean(create_constraint=True, name="is_open_is_bool"), default=True
        )
        color: Mapped[Color | None] = mapped_column(sa.Enum(Color, name="color_enum"))
        shade: Mapped[str | None] = mapped_column(
            sa.Enum("light", "dark", name="shade", native_enum=False, create_constraint=True)
        )
        author_id: Mapped[int | None] = mapped_column(sa.ForeignKey("author.id"))

    return Article


OWN = ["transaction_id", "end_transaction_id", "operation_type"]


class TestColumns:
    def test_name_key_and_type_only(self, Article: Any, strategy: str) -> None:
        """A version column has name, key and type; only the key columns are NOT NULL."""
        orm.configure_mappers()
        table = Article.__table__
        version = version_table(table)
        own = OWN if strategy == "validity" else [OWN[0], OWN[2]]
        assert version.c.keys() == [*table.c.keys(), *own]
        for column in version.c:
            assert not column.foreign_keys
            assert (column.default, column.onupdate, column.server_default) == (None,) * 3
            assert (column.computed, column.identity, column.unique, column.index) == (None,) * 4
            assert column.nullable is (
                column.name not in ("id", "transaction_id", "operation_type")
            )
        assert [c.name for c in version.primary_key] == ["id", "transaction_id"]
        assert {type(c) for c in version.constraints} == {sa.PrimaryKeyConstraint}

    def test_in_the_database(
        self, Article: Any, engine: sa.Engine, open_session: Any, strategy: str
    ) -> None:
        """That is how the database has it: no CHECK, UNIQUE, foreign key, default or identity."""
        open_session()
        found = sa.inspect(engine)
        assert found.get_foreign_keys("article_version") == []
        assert found.get_check_constraints("article_version") == []
        unique = [i["name"] for i in found.get_indexes("article_version") if i["unique"]]
        assert set(unique) <= {"uq_article_version_open"}
        columns = {c["name"]: c for c in found.get_columns("article_version")}
        for column in columns.values():
            assert column["default"] in (None, "NULL")
            assert not (column.get("computed") or column.get("identity"))
        assert isinstance(columns["transaction_id"]["type"], sa.BigInteger)
        assert isinstance(columns["operation_type"]["type"], sa.SmallInteger)
        assert columns["operation_type"]["nullable"] is False
        if strategy == "validity":
            assert isinstance(columns["end_transaction_id"]["type"], sa.BigInteger)
            assert columns["end_transaction_id"]["nullable"] is True

    def test_values_are_those_of_the_live_row(self, Article: Any, open_session: Any) -> None:
        """Defaults, computed and identity columns are in the version as the database has them."""
        session = open_session()
        article = Article(slug="a", color=Color.red, shade="dark")
        session.add(article)
        session.commit()
        article.size = 7
        session.commit()
        one, two = article.versions
        assert (one.size, one.twice, one.stamp, one.is_open) == (5, 10, 1, True)
        assert (two.size, two.twice, two.stamp, two.color, two.shade) == (
            7,
            14,
            2,
            Color.red,
            "dark",
        )
        assert one.id == article.id >= 1

    def test_the_parents_enum_gets_a_label(
        self, versioning: Any, make_base: Any, engine: sa.Engine, backend: str
    ) -> None:
        """A label that is added to the parent's enum later needs no change of the history."""

        def declare(colors: type[enum.Enum], *shades: str) -> Any:
            namespace = {
                "__tablename__": "article",
                "__versioned__": {},
                "id": mapped_column(sa.Integer, primary_key=True),
                "color": mapped_column(sa.Enum(colors, name="color_enum")),
                "shade": mapped_column(
                    sa.Enum(*shades, name="shade", native_enum=False, create_constraint=True)
                ),
            }
            return type("Article", (make_base(),), namespace)

        Old = declare(Color, "light", "dark")
        Old.metadata.create_all(engine)
        with orm.Session(engine) as session:
            session.add(Old(id=1, color=Color.red, shade="dark"))
            session.commit()
        # the next release, with its migration of the parent's table
        New = declare(enum.Enum("Later", "red blue ultraviolet"), "light", "dark", "nearly black")
        steps = {
            "postgresql": [
                "ALTER TYPE color_enum ADD VALUE 'ultraviolet'",
                "ALTER TABLE article DROP CONSTRAINT shade",
                "ALTER TABLE article ALTER shade TYPE VARCHAR(20)",
            ],
            "mariadb": [
                "ALTER TABLE article MODIFY color ENUM('red', 'blue', 'ultraviolet')",
                "ALTER TABLE article DROP CONSTRAINT shade",
                "ALTER TABLE article MODIFY shade VARCHAR(20)",
            ],
            "sqlite": ["DROP TABLE article"],
        }
        with engine.begin() as connection:
            for step in steps[backend]:
                connection.exec_driver_sql(step)
        New.metadata.create_all(engine)
        with orm.Session(engine) as session:
            article = session.merge(New(id=1, color="ultraviolet", shade="nearly black"))
            session.commit()
            found = [(v.color.name, v.shade) for v in article.versions]
            assert found == [("red", "dark"), ("ultraviolet", "nearly black")]

    @pytest.mark.backends("postgresql")
    def test_one_enum_type(self, Article: Any, engine: sa.Engine, open_session: Any) -> None:
        """PostgreSQL has the parent's enum type only, created and dropped with the parent."""
        open_session().close()
        query = sa.text("SELECT typname FROM pg_type WHERE typtype = 'e'")
        with engine.connect() as connection:
            assert connection.scalars(query).all() == ["color_enum"]
        Article.metadata.drop_all(engine)
        with engine.connect() as connection:
            assert connection.scalars(query).all() == []

    @pytest.mark.backends("postgresql")
    def test_postgresql_enum_and_array(
        self, versioning: Any, Base: Any, engine: sa.Engine, open_session: Any
    ) -> None:
        """The same of postgresql.ENUM, of arrays of an enum, and of an enum as a variant."""

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            color: Mapped[Any] = mapped_column(postgresql.ENUM(Color, name="pg_color"))
            colors: Mapped[Any] = mapped_column(sa.ARRAY(sa.Enum(Color, name="in_array")))
            more: Mapped[Any] = mapped_column(
                postgresql.ARRAY(postgresql.ENUM("x", "y", name="in_pg_array"))
            )
            tone: Mapped[str] = mapped_column(
                sa.String(9).with_variant(sa.Enum("low", "high", name="variant"), "postgresql")
            )

        session = open_session()
        article = Article(color=Color.red, colors=[Color.red], more=["x"], tone="low")
        session.add(article)
        session.commit()
        article.colors, article.more = [Color.blue, Color.red], ["x", "y"]
        session.commit()
        assert [(v.color, v.colors, v.more) for v in article.versions] == [
            (Color.red, [Color.red], ["x"]),
            (Color.red, [Color.blue, Color.red], ["x", "y"]),
        ]
        with engine.connect() as connection:
            types = connection.scalars(sa.text("SELECT typname FROM pg_type WHERE typtype = 'e'"))
            assert sorted(types) == ["in_array", "in_pg_array", "pg_color", "variant"]
        session.close()
        Base.metadata.drop_all(engine)

    def test_a_type_decorator_over_an_enum(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """A decorated Enum keeps its Python side and adds no CHECK."""

        class Spoken(sa.TypeDecorator[str]):
            impl = sa.Enum("a", "b", name="spoken", native_enum=False, create_constraint=True)
            cache_ok = True

            def process_bind_param(self, value: Any, dialect: Any) -> Any:
                return None if value is None else value.lower()

            def process_result_value(self, value: Any, dialect: Any) -> Any:
                return None if value is None else value.upper()

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            word: Mapped[str] = mapped_column(Spoken())

        session = open_session()
        article = Article(word="A")
        session.add(article)
        session.commit()
        article.word = "B"
        session.commit()
        assert [v.word for v in article.versions] == ["A", "B"]
        constraints = version_table(Article.__table__).constraints  # type: ignore[arg-type]
        assert {type(c) for c in constraints} == {sa.PrimaryKeyConstraint}


class TestIndexes:
    def test_default(
        self, Article: Any, strategy: str, engine: sa.Engine, open_session: Any, backend: str
    ) -> None:
        """Default: the primary key, transaction_id, and at most one open version of a row."""
        open_session()
        found = {i["name"]: i for i in sa.inspect(engine).get_indexes("article_version")}
        expected = {"ix_article_version_transaction_id"}
        if strategy == "validity" and backend in ("sqlite", "postgresql"):
            expected.add("uq_article_version_open")
        assert set(found) == expected

    @pytest.mark.options(indexes="compatible", unique_open=False)
    def test_compatible(
        self, Article: Any, strategy: str, engine: sa.Engine, open_session: Any
    ) -> None:
        """`indexes="compatible"`: one for each of the own columns, under the peers' names."""
        open_session()
        found = {
            i["name"]: i["column_names"] for i in sa.inspect(engine).get_indexes("article_version")
        }
        own = OWN if strategy == "validity" else [OWN[0], OWN[2]]
        assert found == {f"ix_article_version_{name}": [name] for name in own}

    @pytest.mark.backends("sqlite", "postgresql")
    @pytest.mark.parametrize("strategy", ["validity"])
    def test_two_open_versions_are_impossible(
        self, Article: Any, engine: sa.Engine, open_session: Any, strategy: str
    ) -> None:
        """The database refuses a second open version of one row."""
        open_session()
        version = version_table(Article.__table__)
        with engine.connect() as connection:
            connection.execute(sa.insert(version).values(id=1, transaction_id=1, operation_type=0))
            with pytest.raises(sa.exc.IntegrityError):
                connection.execute(
                    sa.insert(version).values(id=1, transaction_id=2, operation_type=1)
                )


class TestTransactionTable:
    def test_columns(
        self, versioning: Any, Article: Any, engine: sa.Engine, open_session: Any
    ) -> None:
        """transaction(id BIGINT, issued_at TIMESTAMP, remote_addr VARCHAR(50))."""
        open_session()
        columns = {c["name"]: c["type"] for c in sa.inspect(engine).get_columns("transaction")}
        assert list(columns) == ["id", "issued_at", "remote_addr"]
        assert isinstance(columns["id"], sa.Integer)
        assert isinstance(columns["issued_at"], sa.DateTime)
        assert isinstance(columns["remote_addr"], sa.String)
        assert columns["remote_addr"].length == 50

    @pytest.mark.backends("postgresql", "mariadb")
    def test_sequence(
        self, versioning: Any, Article: Any, engine: sa.Engine, open_session: Any
    ) -> None:
        """Ids come from the sequence transaction_id_seq where there are sequences."""
        session = open_session()
        assert "transaction_id_seq" in sa.inspect(engine).get_sequence_names()
        work = versioning.unit_of_work(session)
        assert work.create_transaction(session).id == 1
        assert session.scalar(sa.Sequence("transaction_id_seq")) == 2


class TestNames:
    def test_long_names(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """A table name near the limit of a database gets a version table whose name fits."""
        name = "a_table_with_a_name_that_is_as_long_as_postgresql_lets_it_be_ok"
        assert len(name) == 63
        other = name[:-1] + "x"
        classes = [
            type(
                f"Long{i}",
                (Base,),
                {
                    "__tablename__": table,
                    "__versioned__": {},
                    "id": mapped_column(sa.Integer, primary_key=True),
                    "name": mapped_column(sa.String(9)),
                },
            )
            for i, table in enumerate((name, other))
        ]
        session = open_session()
        for cls in classes:
            session.add(cls(id=1, name="a"))  # type: ignore[call-arg]
        session.commit()
        tables = [version_table(cls.__table__).name for cls in classes]  # type: ignore[attr-defined]
        assert len(set(tables)) == 2
        assert all(len(table) <= 63 for table in tables)
        assert [session.get(cls, 1).versions[0].name for cls in classes] == ["a", "a"]

    @pytest.mark.parametrize(
        "convention",
        [
            {
                "ix": "ix_%(column_0_label)s",
                "pk": "pk_%(table_name)s",
                "ck": "ck_%(table_name)s_%(constraint_name)s",
            },
            {"ix": "ix_%(column_0_name)s", "uq": "uq_%(column_0_name)s"},
            {"ix": "index_of_%(table_name)s", "pk": "pk_of_%(table_name)s"},
        ],
        ids=["common", "column", "table"],
    )
    def test_naming_convention(
        self, versioning: Any, make_base: Any, engine: sa.Engine, convention: dict[str, str]
    ) -> None:
        """A naming convention, also one that gives two indexes one name, is no trouble."""
        base = make_base(metadata=sa.MetaData(naming_convention=convention))
        versioning.user_cls = "User"

        def declare(name: str) -> Any:
            namespace = {
                "__tablename__": name.lower(),
                "__versioned__": {},
                "id": mapped_column(sa.Integer, primary_key=True),
                f"{name.lower()}_ref": mapped_column(sa.Integer, index=True),
            }
            return type(name, (base,), namespace)

        User, Article = declare("User"), declare("Article")
        base.metadata.create_all(engine)
        with orm.Session(engine) as session:
            session.add_all([User(id=1), Article(id=1)])
            session.commit()
            assert session.get(Article, 1).versions.count() == 1
        base.metadata.drop_all(engine)


class TestFunctions:
    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    def test_between_parent_and_version_table(self, Article: Any) -> None:
        """version_table() and parent_table() are inverse; other tables are refused."""
        orm.configure_mappers()
        table = Article.__table__
        assert parent_table(version_table(table)) is table
        with pytest.raises(TableNotVersioned, match="'article' is no version table"):
            parent_table(table)
        with pytest.raises(TableNotVersioned, match="'author' has no history"):
            version_table(Article.metadata.tables["author"])

    def test_association_table(self, versioning: Any, Base: Any) -> None:
        """An association table has a version table with the same own columns."""
        links = sa.Table(
            "article_tag",
            Base.metadata,
            sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
            sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        )

        class Tag(Base):
            __tablename__ = "tag"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            tags: Mapped[list[Tag]] = relationship(secondary=links)

        orm.configure_mappers()
        version = version_table(links)
        own = [c.name for c in version_table(Article.__table__).c][1:]  # type: ignore[arg-type]
        assert version.name == "article_tag_version"
        assert version.c.keys() == ["article_id", "tag_id", *own]
        assert [c.name for c in version.primary_key] == ["article_id", "tag_id", "transaction_id"]


class TestMigrationFunctions:
    @pytest.fixture
    def strategy(self) -> str:
        return "validity"

    @pytest.fixture
    def history(self, engine: sa.Engine) -> Iterator[tuple[sa.Connection, sa.Table]]:
        """A version table as another program left it: two rows, no ends, no flags."""
        columns = [
            sa.Column("a", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("b", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("name", sa.String(9)),
            sa.Column("name_mod", sa.Boolean),
            sa.Column("transaction_id", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("end_transaction_id", sa.BigInteger),
        ]
        table = sa.Table("thing_version", sa.MetaData(), *columns)
        with engine.begin() as connection:
            table.create(connection)
            rows = [
                (1, 1, "x", 1),
                (1, 1, "y", 3),
                (1, 1, "y", 7),
                (1, 2, None, 2),
                (1, 2, "z", 3),
                (1, 2, None, 4),
            ]
            names = ("a", "b", "name", "transaction_id")
            connection.execute(table.insert(), [dict(zip(names, row, strict=True)) for row in rows])
            yield connection, table

    def test_update_end_tx_column(self, history: Any, engine: sa.Engine) -> None:
        """Each version ends where the next one of the same row starts: one statement."""
        connection, table = history
        with support.statements(engine) as log:
            update_end_tx_column(table, conn=connection)
        assert len(log) == 1
        rows = connection.execute(
            sa.select(table.c.transaction_id, table.c.end_transaction_id).order_by(
                table.c.b, table.c.transaction_id
            )
        ).all()
        assert rows == [(1, 3), (3, 7), (7, None), (2, 3), (3, 4), (4, None)]

    def test_update_property_mod_flags(self, history: Any, engine: sa.Engine) -> None:
        """A flag is set where a version changed the column, and in the first one: one statement."""
        connection, table = history
        with support.statements(engine) as log:
            update_property_mod_flags(table, ["name"], conn=connection)
        assert len(log) == 1
        rows = connection.scalars(
            sa.select(table.c.name_mod).order_by(table.c.b, table.c.transaction_id)
        ).all()
        assert rows == [True, True, False, True, True, True]

    @pytest.mark.parametrize("function", [update_end_tx_column, update_property_mod_flags])
    def test_without_connection(self, function: Any) -> None:
        """Without a connection the error says where to get one."""
        table = sa.Table(
            "t",
            sa.MetaData(),
            *(
                sa.Column(n, sa.Integer, primary_key=True)
                for n in ("id", "transaction_id", "end_transaction_id")
            ),
        )
        arguments = [table] if function is update_end_tx_column else [table, []]
        with pytest.raises(ValueError, match=r"op\.get_bind"):
            function(*arguments)


def test_version_class_is_mapped_to_the_version_table(versioning: Any, Article: Any) -> None:
    """The attributes of a version class are the columns of the version table."""
    cls = version_class(Article)
    table = version_table(Article.__table__)
    assert cls.__table__ is table  # type: ignore[attr-defined]
    assert {p.key for p in sa.inspect(cls).column_attrs} == set(table.c.keys())
