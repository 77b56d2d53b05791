"""Laws of the mixins: every change has its time, whatever makes it; nothing else has."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Mapped, MappedAsDataclass, Session, mapped_column, relationship

from sqlalchemy_history import VersioningManager, make_versioned, remove_versioning, stamp, verify
from sqlalchemy_history.mixins import ChangeTrackingMixin, LastModifiedMixin

ROOT = Path(__file__).resolve().parent.parent
UTC = datetime.timezone.utc
LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=UTC)
INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert, "mariadb": mysql.insert}


@pytest.fixture(autouse=True)
def no_listeners_left() -> Iterator[None]:
    yield
    stamp.stop()


@pytest.fixture(params=["plain", "versioned"])
def is_versioned(request: pytest.FixtureRequest) -> Iterator[bool]:
    if request.param == "plain":
        yield False
        return
    manager = VersioningManager()
    make_versioned(manager=manager, user_cls=None)
    yield True
    remove_versioning(manager=manager)
    manager.reset()


@pytest.fixture
def User(is_versioned: bool, Base: Any) -> Any:  # noqa: N802
    class User(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "user_account"
        if is_versioned:
            __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50), unique=True)
        full: Mapped[str | None] = mapped_column("fullname", sa.String(50))
        age: Mapped[int | None]

    return User


@pytest.fixture
def session(User: Any, open_session: Any) -> Session:
    """A session with one user, whose times are long ago."""
    session = open_session()
    session.add(User(name="spongebob", full="Spongebob Squarepants", age=1))
    session.commit()
    age(session, User)
    return session


def age(session: Session, User: Any) -> None:
    """Set all times back, as if the rows had been written long ago."""
    old = LONG_AGO.isoformat(timespec="microseconds")
    times = {"name": old, "full": old, "age": old}
    session.execute(sa.update(User).values(changes=times, last_modified_at=LONG_AGO))
    session.commit()


def get(session: Session, User: Any) -> Any:
    session.expire_all()
    return session.scalars(sa.select(User).order_by(User.id)).first()


def changed(user: Any) -> set[str]:
    """What has changed since the row was set back; last_modified_at must agree."""
    names = {name for name in ("name", "full", "age") if user.get_updated_at(name) != LONG_AGO}
    assert (user.last_modified_at != LONG_AGO) == bool(names)
    return names


# -- the example of seed 000


def test_spongebob(User: Any, open_session: Any) -> None:
    """Seed 000: both attributes that one flush changes share a time, aware, in UTC."""
    session = open_session()
    spongebob = User(name="spongebob", full="Spongebob Squarepants")
    session.add(spongebob)
    session.commit()
    first = spongebob.get_updated_at("name")
    spongebob.name = "Spongebob"
    spongebob.full = "SpongeBob Martin SquarePants"
    session.commit()
    session.refresh(spongebob)
    second = spongebob.get_updated_at("name")
    assert spongebob.get_updated_at("full") == second
    assert second > first
    assert second.utcoffset() == datetime.timedelta(0)
    assert spongebob.get_updated_at("age") is None
    assert spongebob.last_modified_at == second


def test_what_the_seed_is_missing(User: Any, session: Session) -> None:
    """Seed 000, "Still Missing": session.execute(update(User).values(...)) is seen too."""
    spongebob = get(session, User)
    session.execute(sa.update(User).values(name="Spongebob"))
    session.refresh(spongebob)
    assert changed(spongebob) == {"name"}


# -- what a flush changes


def test_only_real_changes_count(User: Any, session: Session) -> None:
    """An equal value is no change, set on a loaded object or on an expired one."""
    user = get(session, User)
    user.name, user.age = "spongebob", 2
    session.commit()
    assert changed(get(session, User)) == {"age"}
    age(session, User)
    session.expire_all()
    user.name, user.full = "spongebob", "new"
    session.commit()
    assert changed(get(session, User)) == {"full"}


def test_value_that_the_database_computes(User: Any, session: Session) -> None:
    """An attribute set to an SQL expression has changed if its value has."""
    user = get(session, User)
    user.name = sa.func.lower(User.name)
    user.age = User.age + 1
    session.commit()
    assert changed(get(session, User)) == {"age"}


def test_objects_of_one_flush_share_the_time(User: Any, open_session: Any) -> None:
    """All objects that one flush inserts or updates have the same time, batches included."""
    session = open_session()
    users = [User(name=f"u{i}") for i in range(5)]
    session.add_all(users)
    session.commit()
    assert len({user.get_updated_at("name") for user in users}) == 1
    users[0].name = "x"
    users[1].age = 5
    session.expire(users[2])
    users[2].full = "y"
    session.add(new := User(name="new"))
    session.commit()
    times = [
        users[0].get_updated_at("name"),
        users[1].get_updated_at("age"),
        users[2].get_updated_at("full"),
        users[2].last_modified_at,
        new.get_updated_at("name"),
        new.last_modified_at,
    ]
    assert len(set(times)) == 1


def test_value_set_by_hand_stays(User: Any, session: Session) -> None:
    """Who sets last_modified_at means it."""
    user = get(session, User)
    user.name, user.last_modified_at = "x", LONG_AGO + datetime.timedelta(1)
    session.commit()
    assert user.last_modified_at == LONG_AGO + datetime.timedelta(1)


def test_unknown_attribute_is_an_error(User: Any) -> None:
    """get_updated_at() of no column attribute raises and names the nearest, on the class too."""
    with pytest.raises(AttributeError, match=r"User.*'fulll'.*did you mean 'full'"):
        User().get_updated_at("fulll")
    with pytest.raises(AttributeError, match="'changes'"):
        User.get_updated_at("changes")


# -- bulk statements


def bulk_values(session: Session, User: Any, backend: str) -> None:
    session.execute(sa.update(User).where(User.age == 1).values(name="new", full=User.full))


def bulk_expression(session: Session, User: Any, backend: str) -> None:
    session.execute(sa.update(User).values({User.name: User.name + "!", "age": User.age * 1}))


def bulk_by_primary_key(session: Session, User: Any, backend: str) -> None:
    identity = session.scalars(sa.select(User.id)).one()
    session.execute(sa.update(User), [{"id": identity, "name": "new", "age": 1}])


def bulk_update_mappings(session: Session, User: Any, backend: str) -> None:
    identity = session.scalars(sa.select(User.id)).one()
    session.bulk_update_mappings(User, [{"id": identity, "name": "new", "age": 1}])


def core_update(session: Session, User: Any, backend: str) -> None:
    table = User.__table__
    session.execute(table.update().values(name="new", fullname="Spongebob Squarepants"))


def core_ordered(session: Session, User: Any, backend: str) -> None:
    table = User.__table__
    session.execute(table.update().ordered_values((table.c.name, "new"), (table.c.age, 1)))


def core_executemany(session: Session, User: Any, backend: str) -> None:
    table = User.__table__
    identity = session.scalars(sa.select(User.id)).one()
    statement = table.update().where(table.c.id == sa.bindparam("which"))
    session.connection().execute(
        statement, [{"which": identity, "name": "new"}, {"which": -1, "name": "other"}]
    )


def query_update(session: Session, User: Any, backend: str) -> None:
    session.query(User).update({"name": "new"})


def upsert(session: Session, User: Any, backend: str) -> None:
    statement = INSERTS[backend](User).values(name="spongebob", age=1)
    values = {"name": "new", "age": 1}
    if backend == "mariadb":
        statement = statement.on_duplicate_key_update(**values)
    else:
        statement = statement.on_conflict_do_update(index_elements=["name"], set_=values)
    session.execute(statement)


def upsert_excluded(session: Session, User: Any, backend: str) -> None:
    statement = INSERTS[backend](User)
    rows = [{"id": 1, "name": "new", "age": 1}, {"id": 2, "name": "other", "age": 1}]
    if backend == "mariadb":
        statement = statement.on_duplicate_key_update(
            name=statement.inserted.name, age=statement.inserted.age
        )
    else:
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={c: statement.excluded[c] for c in ("name", "age")}
        )
    session.execute(statement, rows)
    session.execute(sa.delete(User).where(User.id == 2))


@pytest.mark.parametrize(
    "how",
    [
        bulk_values,
        bulk_expression,
        bulk_by_primary_key,
        bulk_update_mappings,
        core_update,
        core_ordered,
        core_executemany,
        query_update,
        upsert,
        upsert_excluded,
    ],
)
def test_bulk_statements_set_the_times_of_what_they_change(
    User: Any, session: Session, backend: str, how: Any
) -> None:
    """Each kind of UPDATE, and an upsert, stamps what really changes, and nothing else."""
    how(session, User, backend)
    session.commit()
    user = get(session, User)
    assert changed(user) == {"name"}
    assert user.get_updated_at("name").utcoffset() == datetime.timedelta(0)
    assert user.get_updated_at("name") == user.last_modified_at


def test_bulk_statement_runs_again_with_other_values(User: Any, session: Session) -> None:
    """A statement whose compiled form is cached compares with its own values, at its own time."""
    times = []
    for name in ("one", "two", "two"):
        session.execute(sa.update(User).where(User.id == 1).values(name=name))
        session.commit()
        times.append(get(session, User).get_updated_at("name"))
    assert LONG_AGO < times[0] < times[1] == times[2]


def test_bulk_operation_has_a_time_of_its_own(User: Any, session: Session) -> None:
    """bulk_update_mappings() after a flush does not take the time of that flush."""
    user = session.scalars(sa.select(User)).one()
    user.age = 5
    session.flush()
    before = user.last_modified_at
    session.bulk_update_mappings(User, [{"id": user.id, "name": "new"}])
    session.commit()
    assert user.get_updated_at("name") > before


def test_row_without_changes_gets_them(User: Any, session: Session) -> None:
    """A row older than the column, where ``changes`` is NULL, starts with nothing."""
    session.execute(sa.update(User).values(changes=sa.null()))
    assert get(session, User).get_updated_at("name") is None
    session.execute(sa.update(User).values(name="new"))
    user = get(session, User)
    assert set(user.changes) == {"name"}
    assert user.get_updated_at("age") is None


def test_inserts_of_every_kind_have_times(User: Any, open_session: Any, backend: str) -> None:
    """What an INSERT gives a value has its time, however many rows it makes, and from what."""
    session = open_session()
    session.execute(sa.insert(User).values(name="one"))
    session.execute(sa.insert(User), [{"name": "two"}, {"name": "three", "age": None}])
    session.execute(sa.insert(User).values([{"name": "four"}, {"name": "five"}]))
    session.execute(sa.insert(User).values(name=sa.func.lower("SIX")))
    session.execute(User.__table__.insert(), [{"name": "seven"}])
    statement = INSERTS[backend](User).values(name="eight")
    if backend == "mariadb":
        statement = statement.on_duplicate_key_update(name="x")
    else:
        statement = statement.on_conflict_do_update(index_elements=["name"], set_={"name": "x"})
    session.execute(statement)
    source = sa.select(User.name + "0").where(User.name == "one")
    session.execute(sa.insert(User).from_select(["name"], source))
    session.commit()
    users = session.scalars(sa.select(User)).all()
    assert len(users) == 9
    for user in users:
        assert set(user.changes) == {"name"}, user.name
        assert user.get_updated_at("name") == user.last_modified_at
        assert user.last_modified_at.utcoffset() == datetime.timedelta(0)
    assert len({u.last_modified_at for u in users if u.name in ("two", "three")}) == 1


def test_every_row_of_an_insert_counts_its_own_values(User: Any, session: Session) -> None:
    """With several VALUES, each row has the times of what it gives a value, defaults included."""
    session.execute(
        sa.insert(User).values([{"name": "one", "age": None}, {"name": None, "age": 2}])
    )
    session.execute(sa.insert(User).values([{"name": sa.func.lower("TWO")}, {"name": "three"}]))
    session.commit()
    users = session.scalars(sa.select(User).where(User.name != "spongebob")).all()
    assert {user.name: set(user.changes) for user in users} == {
        "one": {"name"},
        "two": {"name"},
        "three": {"name"},
    }
    assert set(session.scalars(sa.select(User).where(User.age == 2)).one().changes) == {"age"}


def test_key_that_a_statement_changes_is_recorded(
    versioning: Any, Base: Any, open_session: Any
) -> None:
    """The merge of times can be foreseen, so the history knows the old key and the new one."""

    class Word(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "word"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    session = open_session()
    session.add(Word(id=1))
    session.commit()
    session.execute(sa.update(Word).values(id=2))
    session.commit()
    assert verify(session, Word) == []


@pytest.mark.parametrize("how", ["auto", "evaluate", "fetch", False])
def test_loaded_objects_are_refreshed_as_asked(User: Any, session: Session, how: Any) -> None:
    """synchronize_session holds for the times as it does for the values."""
    user = get(session, User)
    _ = user.changes, user.last_modified_at
    statement = sa.update(User).where(User.age == 1).values(name="new")
    session.execute(statement, execution_options={"synchronize_session": how})
    assert changed(user) == (set() if how is False else {"name"})
    assert user.name == ("spongebob" if how is False else "new")


def test_returning_is_what_was_asked_for(User: Any, session: Session, backend: str) -> None:
    """RETURNING of an UPDATE gives the columns asked for, the new times among them."""
    if backend == "mariadb":
        user = get(session, User)
        assert session.execute(sa.update(User).values(name="new")).rowcount == 1
        assert user.get_updated_at("name") > LONG_AGO
        return
    found = session.execute(
        sa.update(User).values(name="new").returning(User.name, User.last_modified_at)
    )
    [(name, time)] = found.all()
    assert name == "new"
    assert time > LONG_AGO


# -- reading


def test_times_in_where_and_order_by(User: Any, session: Session) -> None:
    """User.get_updated_at("name") is an expression that compares with aware datetimes."""
    session.add(User(name="patrick"))
    session.commit()
    at = User.get_updated_at("name")
    assert session.scalars(sa.select(User.name).order_by(at.desc())).all() == [
        "patrick",
        "spongebob",
    ]
    assert session.scalars(sa.select(User.name).where(at <= LONG_AGO)).all() == ["spongebob"]
    assert session.scalar(sa.select(at).where(User.name == "spongebob")) == LONG_AGO
    with pytest.raises(sa.exc.StatementError, match="naive"):
        session.scalars(sa.select(User).where(at > datetime.datetime(2020, 1, 1)))


def test_versions_hold_the_times_of_the_row(versioning: Any, Base: Any, open_session: Any) -> None:
    """A version has the times that the live row had, also after a bulk statement."""

    class Note(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = mapped_column(sa.String(20))

    session = open_session()
    session.add(note := Note(text="a"))
    session.commit()
    note.text = "b"
    session.commit()
    session.execute(sa.update(Note).values(text="c"))
    session.commit()
    session.execute(sa.update(Note).values(text="c"))
    session.commit()
    versions = note.versions.all()
    assert [version.text for version in versions] == ["a", "b", "c"]
    times = [version.get_updated_at("text") for version in versions]
    assert times == sorted(set(times))
    assert times == [version.last_modified_at for version in versions]
    assert versions[-1].changes == note.changes


# -- inheritance, collections


def test_column_of_the_base_table_set_by_primary_key(Base: Any, open_session: Any) -> None:
    """The ORM executes an update by primary key of a subclass for each table that it sets."""

    class Animal(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))

    class Dog(Animal):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
        bark: Mapped[str] = mapped_column(sa.String(20))

    session = open_session()
    session.add(Dog(id=1, name="a", bark="b"))
    session.commit()
    dog = get(session, Dog)
    made = dict(dog.changes)
    for name in ("name", "bark"):
        session.execute(sa.update(Dog), [{"id": 1, name: "new"}])
        session.commit()
        assert {key for key in made if dog.changes[key] != made[key]} == {name}
        made = dict(dog.changes)


def test_model_that_is_a_dataclass(make_base: Any, open_session: Any) -> None:
    """The mixins are no dataclasses, and their columns are no fields: __init__() knows none."""
    base = make_base()

    class Note(ChangeTrackingMixin, LastModifiedMixin, MappedAsDataclass, base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        text: Mapped[str] = mapped_column(sa.String(20), default="a")

    session = open_session()
    session.add(note := Note())
    session.commit()
    made = note.last_modified_at
    note.text = "b"
    session.commit()
    assert note.get_updated_at("text") == note.last_modified_at > made


def test_joined_inheritance(Base: Any, open_session: Any) -> None:
    """The times of a subclass's columns are kept with those of its base."""

    class Animal(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        type: Mapped[str] = mapped_column(sa.String(10))
        name: Mapped[str | None] = mapped_column(sa.String(20))

    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
        tricks: Mapped[int | None]

    session = open_session()
    session.add_all([dog := Dog(name="Rex", tricks=1), other := Dog(name="Bo", tricks=1)])
    session.commit()
    first = dog.get_updated_at("name")
    assert dog.get_updated_at("tricks") == first
    dog.tricks = 2
    session.commit()
    assert dog.get_updated_at("name") == first
    second = dog.get_updated_at("tricks")
    assert second == dog.last_modified_at > first
    session.execute(sa.update(Dog).where(Dog.tricks == 2).values(tricks=3))
    session.commit()
    third = dog.get_updated_at("tricks")
    assert third == dog.last_modified_at > second
    session.execute(sa.update(Dog), [{"id": dog.id, "tricks": 3}, {"id": other.id, "tricks": 5}])
    session.commit()
    assert dog.get_updated_at("tricks") == dog.last_modified_at == third
    session.execute(sa.update(Dog), [{"id": dog.id, "tricks": 4, "name": "Rex"}])
    session.commit()
    assert dog.get_updated_at("tricks") == dog.last_modified_at > third
    assert dog.get_updated_at("name") == first


def test_columns_of_a_subclass_without_a_table(Base: Any, open_session: Any) -> None:
    """A class below a joined one adds columns to its table: they count when SQL changes them."""

    class Animal(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "animal"
        __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "animal"}
        id: Mapped[int] = mapped_column(primary_key=True)
        type: Mapped[str] = mapped_column(sa.String(10))

    class Dog(Animal):
        __tablename__ = "dog"
        __mapper_args__ = {"polymorphic_identity": "dog"}
        id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)

    class Puppy(Dog):
        __mapper_args__ = {"polymorphic_identity": "puppy"}
        weeks: Mapped[int | None] = mapped_column(use_existing_column=True)

    session = open_session()
    session.add(puppy := Puppy(weeks=1))
    session.commit()
    first = puppy.last_modified_at
    session.execute(sa.update(Puppy.__table__).values(weeks=2))
    session.commit()
    assert puppy.get_updated_at("weeks") == puppy.last_modified_at > first


@pytest.mark.parametrize("lazy", ["select", "joined"])
def test_collection_counts_if_it_is_named(Base: Any, open_session: Any, lazy: Any) -> None:
    """__last_modified_relations__: an element more or less touches the object; others do not."""

    class Event(LastModifiedMixin, Base):
        __tablename__ = "event"
        __last_modified_relations__ = ("talks",)
        id: Mapped[int] = mapped_column(primary_key=True)
        talks: Mapped[list[Any]] = relationship("Talk", back_populates="event", lazy=lazy)
        notes: Mapped[list[Any]] = relationship("Note")

    class Talk(Base):
        __tablename__ = "talk"
        id: Mapped[int] = mapped_column(primary_key=True)
        event_id: Mapped[int | None] = mapped_column(sa.ForeignKey("event.id"))
        event: Mapped[Any] = relationship("Event", back_populates="talks")

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        event_id: Mapped[int | None] = mapped_column(sa.ForeignKey("event.id"))

    elements = sa.select(Talk).where(Talk.id == sa.select(sa.func.max(Talk.id)).scalar_subquery())
    session = open_session()
    session.add(event := Event())
    session.commit()
    times = [event.last_modified_at]
    for change in (
        lambda event: event.notes.append(Note()),
        lambda event: event.talks.append(Talk()),
        lambda event: session.add(Talk(event=event)),
        lambda event: event.talks.pop(),
        lambda event: session.delete(event.talks[0]),
        lambda event: session.add(Talk(event_id=event.id)),
        lambda event: setattr(session.scalars(elements).one(), "event_id", None),
        lambda event: session.scalars(elements.where(Talk.event_id.is_(None))).one(),
    ):
        change(event)
        session.commit()
        session.expunge_all()
        event = session.scalars(sa.select(Event)).unique().one()
        times.append(event.last_modified_at)
    assert times[0] == times[1]
    assert times[-1] == times[-2]
    assert times[1:-1] == sorted(set(times))


# -- the example of seed 002


def test_last_modified_at_of_the_event_server(
    is_versioned: bool, Base: Any, open_session: Any
) -> None:
    """Seed 002: set when the session is made, and whenever it is updated; aware UTC everywhere."""

    class Talk(LastModifiedMixin, Base):
        __tablename__ = "sessions"
        if is_versioned:
            __versioned__ = {"exclude": []}
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(sa.String(50))

    session = open_session()
    session.add(talk := Talk(title="Keynote"))
    session.commit()
    created = talk.last_modified_at
    assert created.utcoffset() == datetime.timedelta(0)
    talk.title = "Opening"
    session.commit()
    updated = talk.last_modified_at
    assert updated > created
    session.commit()
    talk.title = "Opening"
    session.commit()
    assert talk.last_modified_at == updated
    assert session.scalars(sa.select(Talk).where(Talk.last_modified_at >= updated)).one() is talk


def test_migration_of_the_how_to(engine: Any, Base: Any) -> None:
    """The migration that is shown adds the columns to a table with rows, as the model has them."""
    page = (ROOT / "docs/howto/column_times.rst").read_text(encoding="utf-8")
    code = page.partition(".. code-block:: python\n\n")[2].partition("\n\n``AwareDateTime``")[0]
    before = sa.MetaData()
    users = sa.Table(
        "user_account",
        before,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(50)),
    )

    class User(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "user_account"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    with engine.begin() as connection:
        before.create_all(connection)
        connection.execute(users.insert().values(name="old"))
        names: dict[str, Any] = {}
        exec(textwrap.dedent(code), names)
        with Operations.context(MigrationContext.configure(connection)):
            names["upgrade"]()
    columns = {c["name"]: c["nullable"] for c in sa.inspect(engine).get_columns("user_account")}
    assert {name: columns[name] for name in ("changes", "last_modified_at")} == {
        "changes": User.__table__.c.changes.nullable,
        "last_modified_at": User.__table__.c.last_modified_at.nullable,
    }
    with Session(engine) as session:
        user = session.scalars(sa.select(User)).one()
        moved = user.last_modified_at
        assert user.get_updated_at("name") is None
        user.name = "new"
        session.commit()
        assert user.get_updated_at("name") == user.last_modified_at > moved


def test_async_session_has_the_times_at_hand(
    Base: Any, open_async_session: Any, run_async: Any
) -> None:
    """After a flush of loaded objects the times need no further query."""

    class Note(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(sa.String(20))

    async def main() -> Any:
        session = await open_async_session(expire_on_commit=False)
        session.add(note := Note(text="a"))
        await session.commit()
        first = note.get_updated_at("text")
        note.text = "b"
        await session.commit()
        return first, note.get_updated_at("text"), note.last_modified_at

    first, second, modified = run_async(main)
    assert first < second == modified


def test_nothing_is_listened_to_before_a_class_is_mapped() -> None:
    """Importing the mixins adds no listener to sessions or engines."""
    assert not stamp._listeners
