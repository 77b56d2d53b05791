"""Starting and stopping: managers, when version tables and classes come to be, and who owns what."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Session, mapped_column

import sqlalchemy_history as history
import support
from sqlalchemy_history import (
    ClassNotVersioned,
    ImproperlyConfigured,
    TableNotVersioned,
    TransactionFactory,
    VersioningManager,
    get_versioning_manager,
    make_versioned,
    prune,
    remove_versioning,
    repair,
    revert_transaction,
    transaction_class,
    verify,
    version_class,
    version_table,
)


def declare(base: Any, name: str = "Article", versioned: Any = None, **columns: Any) -> Any:
    """A versioned class with an id and a name."""
    namespace = {
        "__tablename__": name.lower(),
        "__versioned__": {} if versioned is None else versioned,
        "id": mapped_column(sa.Integer, primary_key=True),
        "name": mapped_column(sa.String(50)),
        **columns,
    }
    if versioned is False:
        del namespace["__versioned__"]
    cls = type(name, (base,), namespace)
    keep(base, cls)
    return cls


def keep(base: Any, cls: Any) -> None:
    """SQLAlchemy refers to mapped classes weakly; as a module would, hold them."""
    base.metadata.info.setdefault("classes", []).append(cls)


@pytest.fixture
def strategy() -> str:
    """What is stored does not matter here."""
    return "validity"


@pytest.fixture
def backend() -> str:
    """Nor does the database, unless a test says so."""
    return "sqlite"


@pytest.fixture
def managers() -> Iterator[Callable[..., VersioningManager]]:
    """`managers(**kwargs)` makes a manager that is stopped and reset at the end."""
    made: list[VersioningManager] = []

    def make(**kwargs: Any) -> VersioningManager:
        made.append(VersioningManager(**kwargs))
        return made[-1]

    yield make
    for manager in made:
        remove_versioning(manager=manager)
        manager.reset()


def names(versions: Any) -> list[str]:
    return [version.name for version in versions]


class TestStart:
    def test_make_versioned_twice_records_once(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """Calling make_versioned() again records no change twice."""
        make_versioned(user_cls=None)
        Article = declare(Base)
        make_versioned(user_cls=None)
        with open_session() as session:
            article = Article(name="a")
            session.add(article)
            session.commit()
            assert article.versions.count() == 1

    def test_after_the_models_are_declared(
        self, Base: Any, engine: sa.Engine, managers: Any
    ) -> None:
        """Models that were declared before make_versioned() are versioned, tables included."""
        Article = declare(Base)
        make_versioned(manager=managers(), user_cls=None)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Article(id=1, name="a"))
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]

    def test_after_mappers_are_configured(
        self, Base: Any, engine: sa.Engine, managers: Any
    ) -> None:
        """So are models that were configured, and used, before."""
        Article = declare(Base)
        orm.configure_mappers()
        Article(name="unused")
        make_versioned(manager=managers(), user_cls=None)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Article(id=1, name="a"))
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]

    def test_between_two_models(self, Base: Any, engine: sa.Engine, managers: Any) -> None:
        """One model configured before make_versioned(), one declared after: both are versioned."""
        Article = declare(Base)
        orm.configure_mappers()
        make_versioned(manager=managers(), user_cls=None)
        Tag = declare(Base, "Tag")
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all([Article(id=1, name="a"), Tag(id=1, name="t")])
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]
            assert names(session.get(Tag, 1).versions) == ["t"]

    def test_a_model_declared_after_history_was_read(
        self, versioning: Any, Base: Any, open_session: Any, engine: sa.Engine
    ) -> None:
        """Models may come at any time, also when version classes are mapped already."""
        Article = declare(Base)
        version_class(Article)
        Tag = declare(
            Base,
            "Tag",
            article_id=mapped_column(sa.ForeignKey("article.id")),
            article=orm.relationship(Article, backref="tags"),
        )
        with open_session() as session:
            session.add(Tag(id=1, name="t", article=Article(id=1, name="a")))
            session.commit()
            [version] = session.get(Article, 1).versions
            assert names(version.tags) == ["t"]
            assert version.tags[0].article is version

    def test_stop_and_start_again(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """remove_versioning() stops the recording, make_versioned() takes it up again."""
        Article = declare(Base)
        session = open_session()
        article = Article(id=1, name="a")
        session.add(article)
        session.commit()
        remove_versioning()
        article.name = "b"
        session.commit()
        assert names(article.versions) == ["a"]
        make_versioned(user_cls=None)
        article.name = "c"
        session.commit()
        assert names(article.versions) == ["a", "c"]

    def test_history_is_readable_after_the_end(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """Version classes that nobody has asked for yet can be asked for after the end."""
        Article = declare(Base)
        session = open_session()
        session.add(Article(id=1, name="a"))
        session.commit()
        remove_versioning()
        assert names(session.scalars(sa.select(version_class(Article)))) == ["a"]

    def test_no_listener_is_left(self, Base: Any, open_session: Any, engine: sa.Engine) -> None:
        """remove_versioning() leaves no listener on classes, engines or metadata."""

        def ours(module: str) -> bool:
            return module.split(".", maxsplit=1)[0] == "sqlalchemy_history"

        manager = VersioningManager()
        before = support.class_listeners(ours)
        tags = sa.Table("tags", Base.metadata, *(_link(x) for x in ("article", "tag")))
        make_versioned(manager=manager, user_cls=None)
        Article = declare(Base, tags=orm.relationship("Tag", secondary=tags))
        Tag = declare(Base, "Tag")
        with open_session() as session:
            session.add(Article(name="a", tags=[Tag(name="t")]))
            session.commit()
        assert support.class_listeners(ours) != before
        remove_versioning(manager=manager)
        manager.reset()
        assert support.class_listeners(ours) == before
        for target in (engine, Base.metadata, Article.__mapper__):
            for name in target.dispatch._event_names:
                listeners = list(getattr(target.dispatch, name))
                assert not [x for x in listeners if ours(getattr(x, "__module__", None) or "")]

    def test_a_session_class_of_its_own(self, Base: Any, engine: sa.Engine, managers: Any) -> None:
        """`session=` says which sessions are watched; others record nothing."""

        class Watched(Session):
            pass

        make_versioned(session=Watched, manager=managers(), user_cls=None)
        Article = declare(Base)
        Base.metadata.create_all(engine)
        for cls in (Session, Watched):
            with cls(engine) as session:
                session.add(Article(name=cls.__name__))
                session.commit()
        with Session(engine) as session:
            assert names(session.scalars(sa.select(version_class(Article)))) == ["Watched"]

    def test_a_sessionmaker(self, Base: Any, engine: sa.Engine, managers: Any) -> None:
        """`session=` may be a sessionmaker."""
        watched = orm.sessionmaker(engine)
        make_versioned(session=watched, manager=managers(), user_cls=None)
        Article = declare(Base)
        Base.metadata.create_all(engine)
        with Session(engine) as session, watched() as other:
            session.add(Article(id=1, name="a"))
            session.commit()
            other.add(Article(id=2, name="b"))
            other.commit()
            assert names(session.scalars(sa.select(version_class(Article)))) == ["b"]

    def test_importing_changes_nothing(self) -> None:
        """Importing the package adds no listener and no compilation rule."""
        program = """
import sys
import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session

def state():
    column = sa.Column("id", sa.BigInteger, primary_key=True)
    return (
        str(sa.schema.CreateTable(sa.Table("t", sa.MetaData(), column)).compile(
            dialect=sa.create_engine("sqlite://").dialect)),
        [list(getattr(c.dispatch, n)._clslevel.get(c, ())) for c in (Mapper, Session, sa.Table)
         for n in c.dispatch._event_names],
        sorted(sa.BigInteger.__dict__),
    )

before = state()
import sqlalchemy_history
assert state() == before, (before, state())
"""
        subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def _link(name: str) -> Any:
    return sa.Column(f"{name}_id", sa.ForeignKey(f"{name}.id"), primary_key=True)


class TestManager:
    def test_attributes_may_be_set_after_make_versioned(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """transaction_cls, user_cls and options count when mappers configure, not before."""
        versioning.transaction_cls = TransactionFactory(remote_addr=False)
        versioning.user_cls = "Person"
        versioning.options = {"strategy": "subquery", "table_name": "%s_history"}
        Article, Person = declare(Base), declare(Base, "Person", versioned=False)
        orm.configure_mappers()
        assert list(versioning.transaction_cls.__table__.c.keys()) == ["id", "issued_at", "user_id"]
        assert list(version_table(Article.__table__).c.keys()) == [
            "id",
            "name",
            "transaction_id",
            "operation_type",
        ]
        assert version_table(Article.__table__).name == "article_history"
        with open_session() as session:
            person = Person(id=7, name="p")
            session.add(person)
            session.flush()
            versioning.unit_of_work(session).create_transaction(session).user = person
            session.add(Article(id=1, name="a"))
            session.commit()
            assert session.get(Article, 1).versions[0].transaction.user is person

    def test_options_are_those_of_the_manager(self, versioning: Any) -> None:
        """`manager.options` reads as it was set, and an unknown key is refused with advice."""
        versioning.options = {"table_name": "%s_history"}
        assert versioning.options.table_name == "%s_history"
        with pytest.raises(ImproperlyConfigured, match="'tabel_name'; did you mean 'table_name'"):
            versioning.options = {"tabel_name": "%s_history"}

    def test_reset_forgets_all_models(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """After reset() nothing is versioned, and nothing that was is taken up again by itself."""
        Article = declare(Base)
        orm.configure_mappers()
        table = Article.__table__
        versioning.reset()
        assert versioning.version_class_map == {}
        with pytest.raises(ClassNotVersioned, match="Article"):
            version_class(Article)
        with pytest.raises(TableNotVersioned, match="article"):
            version_table(table)
        assert not hasattr(Article, "versions")
        Tag = declare(Base, "Tag")
        with open_session() as session:
            session.add_all([Article(id=1, name="a"), Tag(id=1, name="t")])
            session.commit()
            assert list(versioning.version_class_map) == [Tag]
            assert names(session.get(Tag, 1).versions) == ["t"]

    def test_version_class_map(self, versioning: Any, Base: Any) -> None:
        """version_class_map has the version class of every versioned class, and of no other."""
        Article, Tag = declare(Base), declare(Base, "Tag")
        declare(Base, "Other", versioned=False)
        orm.configure_mappers()
        assert versioning.version_class_map == {
            Article: version_class(Article),
            Tag: version_class(Tag),
        }

    def test_current_transaction_before_the_flush(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """create_transaction() returns the Transaction before the flush; what is set is saved."""
        Article = declare(Base)
        session = open_session()
        work = versioning.unit_of_work(session)
        assert work.current_transaction is None
        transaction = work.create_transaction(session)
        assert versioning.unit_of_work(session).current_transaction is transaction
        transaction.remote_addr = "10.0.0.7"
        session.add(Article(id=1, name="a"))
        session.commit()
        version = session.get(Article, 1).versions[0]
        assert version.transaction is transaction
        session.expire_all()
        assert version.transaction.remote_addr == "10.0.0.7"

    def test_the_next_transaction_is_another(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """A unit of work ends with the session's transaction."""
        Article = declare(Base)
        session = open_session()
        first = versioning.unit_of_work(session).create_transaction(session)
        first_id = first.id
        session.commit()
        assert versioning.unit_of_work(session).current_transaction is None
        session.add(Article(id=1, name="a"))
        session.flush()
        assert versioning.unit_of_work(session).current_transaction.id != first_id

    def test_nothing_is_kept_alive(self, versioning: Any, make_base: Any) -> None:
        """A manager keeps no class alive whose registry was disposed of and reset."""
        base = make_base()
        ref = weakref.ref(declare(base))
        orm.configure_mappers()
        make_base.dispose()
        versioning.reset()
        del base
        gc.collect()
        assert ref() is None

    def test_disposed_models_are_no_trouble(
        self, versioning: Any, make_base: Any, engine: sa.Engine
    ) -> None:
        """Models that were disposed of without reset() do not get in the way of new ones."""
        old = make_base()
        declare(old)
        orm.configure_mappers()
        old.registry.dispose()
        # the manager's Transaction class went with them
        versioning.transaction_cls = TransactionFactory()
        new = make_base()
        Article = declare(new)
        new.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Article(id=1, name="a"))
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]


class TestSideBySide:
    def test_two_bases_two_managers(
        self, versioning: Any, make_base: Any, engine: sa.Engine, managers: Any
    ) -> None:
        """Managers side by side: each class has one, with its options and Transaction class."""
        base_a, base_b = make_base(), make_base()
        second = managers(options={"table_name": "%s_log"})
        make_versioned(mapper=base_b, manager=second, user_cls=None)
        Article, Tag = declare(base_a), declare(base_b, "Tag")
        other = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
        base_a.metadata.create_all(engine)
        base_b.metadata.create_all(other)
        assert get_versioning_manager(Article) is versioning
        assert get_versioning_manager(Tag) is second
        assert transaction_class(Article) is not transaction_class(Tag)
        assert sorted(sa.inspect(other).get_table_names()) == ["tag", "tag_log", "transaction"]
        with Session(binds={base_a: engine, base_b: other}) as session:
            session.add_all([Article(id=1, name="a"), Tag(id=1, name="t")])
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]
            [version] = session.get(Tag, 1).versions
            assert version.transaction.changed_entities == {version_class(Tag): [version]}
            assert names(session.scalars(sa.select(version_class(Article)))) == ["a"]
        other.dispose()

    @pytest.mark.parametrize("by", ["bind", "binds"])
    def test_a_session_for_each_database_of_one_manager(
        self, make_base: Any, versioning: Any, engine: sa.Engine, by: str
    ) -> None:
        """What looks at all models leaves out those whose tables are in another database."""
        bases = make_base(), make_base()
        other = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
        models = []
        for name, base in zip(("page", "sheet"), bases, strict=True):
            links = sa.Table(
                f"{name}_link",
                base.metadata,
                sa.Column("one", sa.ForeignKey(f"{name}.id"), primary_key=True),
                sa.Column("other", sa.ForeignKey(f"{name}.id"), primary_key=True),
            )
            attributes = {
                "__tablename__": name,
                "__versioned__": {},
                "id": mapped_column(sa.Integer, primary_key=True),
                "name": mapped_column(sa.String(20)),
                "others": orm.relationship(
                    name.title(),
                    secondary=links,
                    primaryjoin=f"{name.title()}.id == {name}_link.c.one",
                    secondaryjoin=f"{name.title()}.id == {name}_link.c.other",
                ),
            }
            models.append(type(name.title(), (base,), attributes))
        engines = engine, other
        for base, bind in zip(bases, engines, strict=True):
            base.metadata.create_all(bind)
        for model, base, bind in zip(models, bases, engines, strict=True):
            with Session(bind) if by == "bind" else Session(binds={base: bind}) as session:
                one = model(id=1, name="a")
                session.add(one)
                session.commit()
                one.name, one.others = "b", [one]
                session.commit()
                last = one.versions[1].transaction
                assert list(last.changed_entities) == [version_class(model)]
                [change] = revert_transaction(session, last).objects
                assert (change.action, one.name, one.others) == ("changed", "a", [])
                session.commit()
                assert verify(session, model) == repair(session, model) == []
                assert prune(session, model, keep_last=1) == 2
                session.commit()
        other.dispose()

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_more_specific_manager_wins(
        self, make_base: Any, managers: Any, order: int
    ) -> None:
        """Of two managers that cover a class, the one whose target is nearer has it."""
        base = make_base()

        class Special(base):  # type: ignore[misc, valid-type]
            __abstract__ = True

        targets = [(managers(), base), (managers(), Special)]
        for manager, target in targets[::order]:
            make_versioned(mapper=target, manager=manager, user_cls=None)
        declare(base)
        Tag = declare(Special, "Tag")
        # one registry has room for one Transaction class
        targets[0][0].transaction_cls = _own_transaction(base)
        orm.configure_mappers()
        assert get_versioning_manager(Tag) is targets[1][0]

    def test_a_base_that_names_its_manager(
        self, versioning: Any, make_base: Any, managers: Any
    ) -> None:
        """`__versioning_manager__` on a Base or class decides, whoever else listens."""
        chosen = managers()
        base = make_base(__versioning_manager__=chosen)
        make_versioned(manager=chosen, user_cls=None)
        Tag, Article = declare(base, "Tag"), declare(make_base())
        orm.configure_mappers()
        assert get_versioning_manager(Tag) is chosen
        assert get_versioning_manager(Article) is versioning

    def test_a_manager_that_is_not_started(
        self, make_base: Any, managers: Any, versioning: Any
    ) -> None:
        """A class whose manager was never started is not versioned by another one."""
        Tag = declare(make_base(__versioning_manager__=managers()), "Tag")
        orm.configure_mappers()
        with pytest.raises(ClassNotVersioned, match="Tag"):
            version_class(Tag)

    def test_two_managers_in_one_registry(self, Base: Any, managers: Any) -> None:
        """Two Transaction classes of one name in one registry are refused with advice."""
        first, second = managers(), managers()
        Article, Tag = declare(Base), declare(Base, "Tag")
        Article.__versioning_manager__, Tag.__versioning_manager__ = first, second
        make_versioned(manager=first, user_cls=None)
        make_versioned(manager=second, user_cls=None)
        with pytest.raises(ImproperlyConfigured, match="give each manager a declarative base"):
            orm.configure_mappers()

    def test_two_bases_one_manager(
        self, versioning: Any, make_base: Any, engine: sa.Engine
    ) -> None:
        """Two Bases with one manager, each in a database of its own: each has all tables."""
        base_a, base_b = make_base(), make_base()
        tags = sa.Table("tags", base_b.metadata, *(_link(x) for x in ("page", "tag")))
        Article = declare(base_a)
        Page = declare(base_b, "Page", tags=orm.relationship("Tag", secondary=tags))
        Tag = declare(base_b, "Tag")
        other = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
        base_a.metadata.create_all(engine)
        base_b.metadata.create_all(other)
        assert "transaction" in sa.inspect(other).get_table_names()
        with Session(binds={base_a: engine, base_b: other}) as session:
            session.add_all(
                [Article(id=1, name="a"), Page(id=1, name="p", tags=[Tag(id=1, name="t")])]
            )
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]
            page = session.get(Page, 1).versions[0]
            assert names(page.tags) == ["t"]
            session.expunge_all()
            session.add(page)
            with support.statements(other) as log:
                assert page.transaction.id == page.transaction_id
            assert len(log.containing("transaction")) == 1
        for bind in (engine, other):
            with bind.connect() as connection:
                assert connection.scalar(sa.text('SELECT count(*) FROM "transaction"')) == 1
        other.dispose()

    def test_a_session_that_chooses_its_engine(
        self, versioning: Any, make_base: Any, engine: sa.Engine
    ) -> None:
        """A session with a ``get_bind()`` of its own, which knows no ``bind``, is left to it."""
        base_a, base_b = make_base(), make_base()
        Article, Tag = declare(base_a), declare(base_b, "Tag")
        other = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)

        class Routing(Session):
            def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:  # type: ignore[override]
                return other if mapper is not None and issubclass(mapper.class_, base_b) else engine

        base_a.metadata.create_all(engine)
        base_b.metadata.create_all(other)
        with Routing() as session:
            session.add_all([Article(id=1, name="a"), Tag(id=1, name="t")])
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]
            assert names(session.get(Tag, 1).versions) == ["t"]
        other.dispose()


def _own_transaction(base: Any) -> Any:
    namespace = {"__tablename__": "own_transaction"}
    return type("OwnTransaction", (history.TransactionBase, base), namespace)


class TestCreateAll:
    def test_straight_after_the_class_statements(
        self, versioning: Any, Base: Any, engine: sa.Engine
    ) -> None:
        """create_all() creates the version tables although nobody configured mappers."""
        declare(Base)
        Base.metadata.create_all(engine)
        assert sorted(sa.inspect(engine).get_table_names()) == [
            "article",
            "article_version",
            "transaction",
        ]

    def test_drop_all_before_configure(self, versioning: Any, Base: Any, engine: sa.Engine) -> None:
        """drop_all() in a new process drops the version tables too."""
        declare(Base)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE article_version (id INTEGER)"))
        Base.metadata.drop_all(engine)
        assert sa.inspect(engine).get_table_names() == []

    def test_create_and_drop_again(self, versioning: Any, Base: Any, engine: sa.Engine) -> None:
        """A test suite creates and drops all tables once per test."""
        Article = declare(Base)
        for _ in range(3):
            Base.metadata.create_all(engine)
            with Session(engine) as session:
                session.add(Article(id=1, name="a"))
                session.commit()
                assert names(session.get(Article, 1).versions) == ["a"]
            Base.metadata.drop_all(engine)
            assert sa.inspect(engine).get_table_names() == []

    def test_chosen_tables_only(self, versioning: Any, Base: Any, engine: sa.Engine) -> None:
        """create_all(tables=) creates what it is told."""
        Article = declare(Base)
        Base.metadata.create_all(engine, tables=[Article.__table__])
        assert sa.inspect(engine).get_table_names() == ["article"]

    def test_checkfirst_false(self, versioning: Any, Base: Any, engine: sa.Engine) -> None:
        """create_all(checkfirst=False) asks the database nothing about version tables either."""
        declare(Base)
        with support.statements(engine) as log:
            Base.metadata.create_all(engine, checkfirst=False)
        assert len(log.containing("create table")) == 3
        assert not log.containing("pragma")

    def test_inside_run_sync(
        self, versioning: Any, Base: Any, run_async: Any, tmp_path: Any
    ) -> None:
        """The same through an AsyncEngine."""
        declare(Base)
        url = sa.engine.make_url(f"sqlite:///{tmp_path / 'history.db'}")
        engine = support.async_engine_for("aiosqlite", url)

        async def main() -> list[str]:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
                return await connection.run_sync(lambda c: sa.inspect(c).get_table_names())

        try:
            assert sorted(run_async(main)) == ["article", "article_version", "transaction"]
        finally:
            run_async(engine.dispose)

    def test_a_table_is_versioned_in_the_schema_of_its_parent(
        self, versioning: Any, Base: Any, engine: sa.Engine, other_schema: str, open_session: Any
    ) -> None:
        """A version table lies in the schema of its parent."""
        Article = declare(Base, __table_args__={"schema": other_schema})
        session = open_session()
        assert version_table(Article.__table__).schema == other_schema
        session.add(Article(id=1, name="a"))
        session.commit()
        assert names(session.get(Article, 1).versions) == ["a"]

    def test_metadata_with_a_schema(
        self, versioning: Any, make_base: Any, engine: sa.Engine, other_schema: str
    ) -> None:
        """A MetaData with a default schema has the transaction table there too."""
        base = make_base(metadata=sa.MetaData(schema=other_schema))
        Article = declare(base)
        base.metadata.create_all(engine)
        assert "transaction" in sa.inspect(engine).get_table_names(schema=other_schema)
        with Session(engine) as session:
            session.add(Article(id=1, name="a"))
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]


class TestUser:
    @pytest.mark.parametrize("by_class", [True, False])
    def test_user_column(
        self, versioning: Any, Base: Any, open_session: Any, by_class: bool
    ) -> None:
        """user_cls, a class or its name, gives `user_id`, an indexed foreign key, and `user`."""
        User = declare(Base, "User", versioned=False)
        versioning.user_cls = User if by_class else "User"
        Article = declare(Base)
        session = open_session()
        table = versioning.transaction_cls.__table__
        [key] = table.c.user_id.foreign_keys
        assert key.column is User.__table__.c.id
        assert [index.name for index in table.indexes] == ["ix_transaction_user_id"]
        user = User(id=3, name="u")
        session.add_all([user, Article(id=1, name="a")])
        session.flush()
        versioning.unit_of_work(session).current_transaction.user = user
        session.commit()
        assert session.get(Article, 1).versions[0].transaction.user_id == 3

    def test_column_of_the_type_of_the_key(self, versioning: Any, Base: Any) -> None:
        """`user_id` has the type of the user's primary key."""
        versioning.user_cls = "User"
        declare(Base)
        declare(Base, "User", versioned=False, id=mapped_column(sa.Uuid, primary_key=True))
        orm.configure_mappers()
        assert isinstance(versioning.transaction_cls.__table__.c.user_id.type, sa.Uuid)

    def test_a_versioned_user(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """The user class may be versioned itself."""
        User = declare(Base, "User")
        versioning.user_cls = "User"
        with open_session() as session:
            session.add(User(id=1, name="u"))
            session.commit()
            assert names(session.get(User, 1).versions) == ["u"]

    def test_none(self, versioning: Any, Base: Any) -> None:
        """user_cls=None leaves column and relationship out."""
        declare(Base)
        orm.configure_mappers()
        assert list(versioning.transaction_cls.__table__.c.keys()) == [
            "id",
            "issued_at",
            "remote_addr",
        ]
        assert not hasattr(versioning.transaction_cls, "user")

    def test_missing(self, versioning: Any, Base: Any) -> None:
        """A user_cls that does not exist fails when mappers configure, with advice."""
        versioning.user_cls = "Usr"
        declare(Base)
        declare(Base, "User", versioned=False)
        with pytest.raises(ImproperlyConfigured, match=r"'Usr'.*did you mean 'User'"):
            orm.configure_mappers()
        assert "article_version" not in Base.metadata.tables
        versioning.user_cls = "User"
        orm.configure_mappers()
        assert "article_version" in Base.metadata.tables

    def test_default_is_user(self, Base: Any, managers: Any) -> None:
        """Without user_cls the class is looked for under the name User."""
        make_versioned(manager=managers())
        declare(Base)
        with pytest.raises(ImproperlyConfigured, match="user_cls='User'"):
            orm.configure_mappers()

    def test_composite_key(self, versioning: Any, Base: Any) -> None:
        """A user with a composite key is refused with advice."""
        versioning.user_cls = "User"
        declare(Base)
        declare(Base, "User", versioned=False, realm=mapped_column(sa.Integer, primary_key=True))
        with pytest.raises(ImproperlyConfigured, match="User has a primary key of 2 columns"):
            orm.configure_mappers()


class TestClashes:
    @pytest.mark.parametrize(
        ("attribute", "message"),
        [
            ("transaction_id", "'transaction_id' of its own"),
            ("operation_type", "'operation_type' of its own"),
            ("end_transaction_id", "'end_transaction_id' of its own"),
            ("Transaction_ID", "'Transaction_ID' of its own"),
            ("versions", "Article has an attribute 'versions'"),
            ("previous", r"Article\.previous"),
            ("next", r"Article\.next"),
            ("index", r"Article\.index"),
            ("changeset", r"Article\.changeset"),
            ("transaction", r"Article\.transaction"),
            ("version_parent", r"Article\.version_parent"),
        ],
    )
    def test_own_column(self, versioning: Any, Base: Any, attribute: str, message: str) -> None:
        """A column with a name that versioning needs fails at configure and leaves nothing."""
        Article = declare(Base, **{attribute: mapped_column(sa.Integer)})
        with pytest.raises(ImproperlyConfigured, match=f"(?i){message}.*rename"):
            orm.configure_mappers()
        assert sorted(Base.metadata.tables) == ["article"]
        assert [m.class_ for m in Base.registry.mappers] == [Article]
        assert Article.__table__.info == {}

    @pytest.mark.parametrize("name", [n for n in dir(history.VersionBase) if n[0] != "_"])
    def test_names_of_version_classes(self, versioning: Any, Base: Any, name: str) -> None:
        """No attribute of a model takes the place of what every version has."""
        declare(Base, **{name: mapped_column(sa.Integer)})
        with pytest.raises(ImproperlyConfigured, match=rf"Article\.{name} .*rename"):
            orm.configure_mappers()

    @pytest.mark.parametrize("attribute", ["previous", "index", "transaction_id"])
    def test_a_way_out(self, versioning: Any, Base: Any, open_session: Any, attribute: str) -> None:
        """What the message says helps: the column keeps its name in the database, or is excluded."""
        Article = declare(
            Base, versioned={"exclude": [attribute]}, **{attribute: mapped_column(sa.Integer)}
        )
        with open_session() as session:
            session.add(Article(id=1, name="a", **{attribute: 5}))
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a"]

    def test_renamed_attribute(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """A column may keep a needed name in the database if the attribute has another."""
        Article = declare(Base, position=mapped_column("index", sa.Integer))
        with open_session() as session:
            session.add(Article(id=1, name="a", position=5))
            session.commit()
            assert session.get(Article, 1).versions[0].position == 5
            assert session.get(Article, 1).versions[0].index == 0

    def test_other_column_names(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """An own `transaction_id` lives with another name for ours."""
        Article = declare(
            Base,
            versioned={"transaction_column_name": "tx"},
            transaction_id=mapped_column(sa.Integer),
        )
        with open_session() as session:
            session.add(Article(id=1, name="a", transaction_id=5))
            session.commit()
            [version] = session.get(Article, 1).versions
            assert version.transaction_id == 5
            assert version.tx == version.transaction.id

    def test_own_class_transaction(self, versioning: Any, Base: Any) -> None:
        """A model called Transaction fails at configure, whatever its table."""
        declare(Base)
        namespace = {"__tablename__": "payment", "id": mapped_column(sa.Integer, primary_key=True)}
        keep(Base, type("Transaction", (Base,), namespace))
        with pytest.raises(ImproperlyConfigured, match="class 'Transaction' already"):
            orm.configure_mappers()
        assert sorted(Base.metadata.tables) == ["article", "payment"]

    def test_own_table_transaction(self, versioning: Any, Base: Any) -> None:
        """So does a table called transaction."""
        declare(Base)
        sa.Table("transaction", Base.metadata, sa.Column("id", sa.Integer, primary_key=True))
        with pytest.raises(ImproperlyConfigured, match="table 'transaction' already"):
            orm.configure_mappers()

    def test_own_transaction_class_is_used(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """A Transaction class of one's own, made of TransactionBase, takes the place of ours."""
        Own = type(
            "Transaction",
            (history.TransactionBase, Base),
            {"__tablename__": "own_transaction", "reason": mapped_column(sa.String(20))},
        )
        versioning.transaction_cls = Own
        Article = declare(Base)
        with open_session() as session:
            with history.transaction_context(reason="test"):
                session.add(Article(id=1, name="a"))
                session.commit()
            transaction = session.get(Article, 1).versions[0].transaction
            assert isinstance(transaction, Own)
            assert transaction.reason == "test"  # type: ignore[attr-defined]

    def test_version_table_exists(self, versioning: Any, Base: Any) -> None:
        """A table with the name of a version table is not adopted."""
        declare(Base, "Tag")
        declare(Base)
        sa.Table("article_version", Base.metadata, sa.Column("id", sa.Integer))
        with pytest.raises(ImproperlyConfigured, match="'article_version' already.*'table_name'"):
            orm.configure_mappers()
        assert sorted(Base.metadata.tables) == ["article", "article_version", "tag"]

    def test_not_a_dict(self, versioning: Any, Base: Any) -> None:
        """`__versioned__ = True` is refused where the class is made."""
        with pytest.raises(
            ImproperlyConfigured, match=r"Article\.__versioned__ = True; it is a dict"
        ):
            declare(Base, versioned=True)
