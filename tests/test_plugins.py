"""Laws of plugins: the door, and each of the built-in ones."""

from __future__ import annotations

import datetime
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column

from sqlalchemy_history import (
    ImproperlyConfigured,
    NoChangesAttribute,
    Versioned,
    VersioningError,
    transaction_context,
    version_class,
)
from sqlalchemy_history import plugins as built_in
from sqlalchemy_history.plugins import (
    ActivityPlugin,
    ChangeLogPlugin,
    NullDeletePlugin,
    Plugin,
    PluginCollection,
    PropertyModTrackerPlugin,
    TransactionChangesPlugin,
    TransactionMetaPlugin,
)


def uses(*classes: type[Plugin]) -> pytest.MarkDecorator:
    names = "+".join(cls.__name__ for cls in classes)
    return pytest.mark.parametrize("plugins", [classes], indirect=True, ids=[names])


@pytest.fixture
def plugins(request: pytest.FixtureRequest) -> list[Plugin]:
    return [cls() for cls in getattr(request, "param", ())]


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))
        content: Mapped[str | None] = mapped_column(sa.Text)

    return Article


@pytest.fixture
def Tag(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        lang: Mapped[str] = mapped_column(sa.String(2), primary_key=True)
        word: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
        note: Mapped[str | None] = mapped_column(sa.String(50))

    return Tag


def rows(session: Session, table: str, *columns: str) -> list[tuple[Any, ...]]:
    names = ", ".join(f"{table}.{name}" for name in columns)
    return sorted(tuple(row) for row in session.execute(sa.text(f"SELECT {names} FROM {table}")))


def transaction_rows(session: Session, versioning: Any) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(versioning.transaction_cls))


# -- the door


def test_unknown_hook_is_refused() -> None:
    """A public method that is no hook is an error that names the nearest hook."""

    class Misspelled(Plugin):
        def after_writes(self, written: Any) -> None: ...

    with pytest.raises(ImproperlyConfigured, match=r"Misspelled\.after_writes.*'after_write'"):
        PluginCollection([Misspelled()])


def test_hook_with_other_arguments_is_refused() -> None:
    """A hook that cannot be called as hooks are called is an error that says how they are."""

    class Wrong(Plugin):
        def after_write(self, session: Any, written: Any) -> None: ...  # type: ignore[override]

    with pytest.raises(ImproperlyConfigured, match=r"Wrong\.after_write.*\(self, written\)"):
        PluginCollection().append(Wrong())


@pytest.mark.parametrize("thing", [Plugin, object(), "TransactionMetaPlugin"])
def test_only_plugins_are_taken(thing: Any) -> None:
    """What is no instance of Plugin is refused, a class with the advice to make an instance."""
    with pytest.raises(ImproperlyConfigured, match="give an instance"):
        PluginCollection([thing])


class Independent:
    """It knows nothing of Plugin, but has all the hooks."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def build_classes(self, manager: Any, in_registry: Any) -> None: ...
    def class_versioned(self, plan: Any) -> None: ...
    def version_columns(self, parent: Any, columns: Any) -> Any:
        return ()

    def transaction_values(self, session: Any) -> Any:
        return {"remote_addr": "independent"}

    def after_write(self, written: Any) -> None:
        self.written += written.tables

    def transaction_moved(self, session: Any, connection: Any, old: int, new: Any) -> None: ...
    def redacted(self, session: Any, plan: Any, key: Any, columns: Any) -> None: ...


@pytest.mark.parametrize("plugins", [[Independent]], indirect=True, ids=["Independent"])
def test_a_plugin_need_not_inherit(Article: Any, versioning: Any, open_session: Any) -> None:
    """Plugin is a protocol: what has all the hooks is a plugin."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    assert [plan.parent.name for plan in versioning.plugins[0].written] == ["article"]
    assert article.versions[0].transaction.remote_addr == "independent"


@pytest.mark.parametrize("name", ["after_write", "redacted"])
def test_a_plugin_that_does_not_inherit_has_all_the_hooks(name: str) -> None:
    """Else it is refused when it is added, not when the hook is called."""
    Partial = type("Partial", (), {k: v for k, v in vars(Independent).items() if k != name})
    with pytest.raises(ImproperlyConfigured, match="is no plugin"):
        PluginCollection([Partial()])


def test_plugin_collection_is_a_list() -> None:
    """A collection can be iterated, indexed, assigned to, deleted from, appended to, compared."""
    one, two, three = NullDeletePlugin(), TransactionMetaPlugin(), ChangeLogPlugin()
    collection = PluginCollection([one])
    collection.append(two)
    assert list(collection) == [one, two]
    assert collection[0] is one
    assert collection[-1] is two
    collection[0] = three
    del collection[1]
    assert collection == [three]
    assert len(collection) == 1
    assert three in collection


def test_manager_wraps_what_is_assigned(versioning: Any) -> None:
    """versioning_manager.plugins is a PluginCollection, also when a list is assigned to it."""
    versioning.plugins = [NullDeletePlugin()]
    assert isinstance(versioning.plugins, PluginCollection)
    with pytest.raises(ImproperlyConfigured):
        versioning.plugins = [object()]


class CountRows(Plugin):
    """A third party's plugin: how many rows each transaction wrote, by table."""

    def build_classes(self, manager: Any, in_registry: Any) -> None:
        self.table = sa.Table(
            "row_count",
            in_registry.metadata,
            sa.Column("transaction_id", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("name", sa.String(50), primary_key=True),
            sa.Column("number", sa.Integer),
        )

    def after_write(self, written: Any) -> None:
        mine = self.table.c.transaction_id == written.transaction_id
        written.connection.execute(self.table.delete().where(mine))
        for plan in written.tables:
            found = sa.select(plan.tx, sa.literal(plan.parent.name), sa.func.count())
            found = found.where(plan.tx == written.transaction_id).group_by(plan.tx)
            written.connection.execute(self.table.insert().from_select(self.table.c.keys(), found))

    def transaction_moved(self, session: Any, connection: Any, old: int, new: int | None) -> None:
        mine = self.table.c.transaction_id == old
        connection.execute(self.table.delete().where(mine))


@uses(CountRows)
def test_third_party_plugin_writes_with_the_versions(Article: Any, open_session: Any) -> None:
    """A plugin of twenty lines stores with SQL what each transaction wrote, once per flush."""
    session = open_session()
    session.add_all([Article(name="a"), Article(name="b")])
    session.commit()
    assert [row[1:] for row in rows(session, "row_count", "transaction_id", "name", "number")] == [
        ("article", 2)
    ]


class _Addresses(Plugin):
    """Knows after `build_classes` alone which column there is."""

    _name = "nothing"

    def build_classes(self, manager: Any, in_registry: Any) -> None:
        self._name = next(
            n for n in manager.transaction_cls.__mapper__.columns.keys() if "addr" in n
        )

    def transaction_values(self, session: Session) -> dict[str, Any]:
        return {self._name: "10.0.0.1"}


@pytest.mark.parametrize("again", [False, True])
def test_a_plugin_that_comes_late_makes_its_classes_then(
    Article: Any, versioning: Any, open_session: Any, again: bool
) -> None:
    """Appended, or given by a second `make_versioned()`, when mappers have configured."""
    session = open_session()
    versioning.plugins.append(_Addresses())
    if again:
        versioning.plugins = [_Addresses()]
    session.add(Article(name="a"))
    session.commit()
    assert session.scalar(sa.select(versioning.transaction_cls.remote_addr)) == "10.0.0.1"


def test_a_plugin_of_version_tables_may_not_come_late(Article: Any, versioning: Any) -> None:
    """Its columns could not be there."""
    version_class(Article)
    with pytest.raises(ImproperlyConfigured, match="PropertyModTrackerPlugin comes too late"):
        versioning.plugins.append(PropertyModTrackerPlugin())
    assert list(versioning.plugins) == []


@uses(ActivityPlugin)
def test_a_second_plugin_of_a_kind_does_not_take_the_table(Article: Any, versioning: Any) -> None:
    """The table belongs to the first one, which may be given again."""
    version_class(Article)
    first = versioning.plugins[0]
    with pytest.raises(ImproperlyConfigured, match="'activity' was made for another ActivityPlug"):
        versioning.plugins = [ActivityPlugin()]
    versioning.plugins = [first]
    assert list(versioning.plugins) == [first]


def test_plugin_column_must_work_without_it(versioning: Any, Base: Any) -> None:
    """A column that those who write versions do not know must be nullable or have a default."""

    class Strict(Plugin):
        def version_columns(self, parent: Any, columns: Any) -> Any:
            return [sa.Column("extra", sa.Integer, nullable=False)]

    versioning.plugins = [Strict()]

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ImproperlyConfigured, match=r"'extra'.*'note'"):
        sa.orm.configure_mappers()


# -- TransactionMetaPlugin


@uses(TransactionMetaPlugin)
def test_meta_is_a_dictionary_of_the_transaction(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """tx.meta holds keys and values, stored in transaction_meta with the transaction's id."""
    session = open_session()
    tx = versioning.unit_of_work(session).create_transaction(session)
    tx.meta = {"ticket": "A-17", "by": "mail"}
    article = Article(name="a")
    session.add(article)
    session.commit()
    assert rows(session, "transaction_meta", "transaction_id", "key", "value") == [
        (tx.id, "by", "mail"),
        (tx.id, "ticket", "A-17"),
    ]
    session.expire_all()
    found = article.versions[0].transaction
    assert found.meta == {"ticket": "A-17", "by": "mail"}
    assert set(found.meta_relation) == {"ticket", "by"}
    assert found.meta_relation["by"].transaction is found
    found.meta["by"] = "hand"
    del found.meta["ticket"]
    session.commit()
    assert rows(session, "transaction_meta", "key", "value") == [("by", "hand")]


# -- TransactionChangesPlugin


@uses(TransactionChangesPlugin)
def test_changes_hold_the_names_of_changed_classes(
    Article: Any, Tag: Any, versioning: Any, open_session: Any
) -> None:
    """Each transaction has a row for each class that it changed, however many flushes it took."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.flush()
    session.add(Article(name="b"))
    session.flush()
    session.add(Tag(lang="en", word="w"))
    session.commit()
    article.name = "c"
    session.commit()
    found = session.scalars(sa.select(versioning.transaction_cls).order_by(sa.text("id"))).all()
    assert [tx.entity_names for tx in found] == [["Article", "Tag"], ["Article"]]
    assert Article.__versioned__["transaction_changes"] is versioning.plugins[0].model_class
    assert found[0].changes[0].transaction is found[0]


@uses(TransactionChangesPlugin)
def test_changes_leave_shared_options_alone(versioning: Any, Base: Any) -> None:
    """What a class finds in `__versioned__` is not put into the dict of a mixin that others share."""

    class Article(Versioned, Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)

    model = versioning.plugins[0]
    version_class(Article)
    assert Article.__versioned__ == {"transaction_changes": model.model_class}
    assert Versioned.__versioned__ == {}


@uses(TransactionChangesPlugin)
def test_changes_that_were_taken_back_are_not_named(
    Article: Any, Tag: Any, versioning: Any, open_session: Any
) -> None:
    """A class is not named whose changes came to nothing, or were rolled back to a savepoint."""
    session = open_session()
    article = Article(name="a")
    session.add_all([article, Tag(lang="en", word="w")])
    session.commit()
    tag = session.get(Tag, ("en", "w"))
    article.name = "b"
    tag.note = "n"
    session.flush()
    tag.note = None
    session.flush()
    with session.begin_nested() as savepoint:
        session.delete(tag)
        session.flush()
        savepoint.rollback()
    session.commit()
    assert article.versions[1].transaction.entity_names == ["Article"]


@uses(TransactionChangesPlugin)
def test_changes_vanish_with_their_transaction(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """A transaction of which nothing is left leaves no row in transaction_changes either."""
    session = open_session()
    session.add(article := Article(name="a"))
    session.commit()
    article.name = "b"
    session.flush()
    article.name = "a"
    session.commit()
    assert transaction_rows(session, versioning) == 1
    assert len(rows(session, "transaction_changes", "transaction_id")) == 1


@uses(TransactionChangesPlugin)
@pytest.mark.parametrize("kind", ["single", "joined"])
def test_changes_name_the_very_class(
    versioning: Any, Base: Any, open_session: Any, kind: str
) -> None:
    """Of a hierarchy, the classes of the changed objects are named, not their bases."""

    class Text(Base):
        __tablename__ = "text_item"
        __versioned__ = {}
        __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "text"}
        id: Mapped[int] = mapped_column(primary_key=True)
        type: Mapped[str] = mapped_column(sa.String(20))

    class Post(Text):
        __mapper_args__ = {"polymorphic_identity": "post"}
        if kind == "joined":
            __tablename__ = "post"
            id: Mapped[int] = mapped_column(sa.ForeignKey("text_item.id"), primary_key=True)
        likes: Mapped[int | None]

    session = open_session()
    session.add(Post(likes=1))
    session.commit()
    tx = session.scalars(sa.select(versioning.transaction_cls)).one()
    assert tx.entity_names == ["Post"]


def test_entity_names_without_the_plugin_say_what_is_missing(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """Without TransactionChangesPlugin, entity_names raises an error that names it."""
    session = open_session()
    session.add(article := Article(name="a"))
    session.commit()
    with pytest.raises(NoChangesAttribute, match="TransactionChangesPlugin"):
        _ = article.versions[0].transaction.entity_names


# -- PropertyModTrackerPlugin


def flags(session: Session) -> list[tuple[Any, ...]]:
    return [
        (operation, bool(name), bool(content))
        for _, operation, name, content in rows(
            session,
            "article_version",
            "transaction_id",
            "operation_type",
            "name_mod",
            "content_mod",
        )
    ]


@uses(PropertyModTrackerPlugin)
def test_mod_flags_say_what_each_version_changed(Article: Any, open_session: Any) -> None:
    """INSERT: what is not NULL; UPDATE: what differs from before; DELETE: everything."""
    session = open_session()
    session.add(article := Article(name="a"))
    session.commit()
    article.content = "c"
    session.commit()
    article.name = None
    session.commit()
    session.delete(article)
    session.commit()
    assert flags(session) == [(0, True, False), (1, False, True), (1, True, False), (2, True, True)]
    first = session.scalars(sa.select(version_class(Article))).first()
    assert (first.name_mod, first.content_mod) == (True, False)
    assert set(first.changeset) == {"id", "name"}


@uses(PropertyModTrackerPlugin)
def test_mod_flags_follow_amendments(Article: Any, open_session: Any) -> None:
    """A version that several flushes made has the flags of the net change."""
    session = open_session()
    session.add(article := Article(name="a", content="c"))
    session.commit()
    article.name = "b"
    session.flush()
    article.content = "d"
    session.flush()
    article.name = "a"
    session.flush()
    assert flags(session)[-1] == (1, False, True)
    session.delete(article)
    session.flush()
    assert flags(session)[-1] == (2, True, True)
    session.add(Article(id=1, name="x", content="c"))
    session.commit()
    assert flags(session)[-1] == (1, True, False)


@pytest.mark.parametrize("plugins", [[]])
def test_mod_suffix_can_be_chosen(versioning: Any, Base: Any, open_session: Any) -> None:
    """column_suffix names the columns."""
    versioning.plugins = [PropertyModTrackerPlugin(column_suffix="_changed")]

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(sa.String(20))

    session = open_session()
    session.add(Note(text="t"))
    session.commit()
    assert rows(session, "note_version", "text_changed") == [(True,)]


# -- NullDeletePlugin


@uses(NullDeletePlugin)
def test_delete_versions_hold_only_the_key(Article: Any, open_session: Any) -> None:
    """A DELETE version has NULL in every column but the key; versions before keep their values."""
    session = open_session()
    session.add_all([article := Article(name="a", content="c"), Article(name="b")])
    session.commit()
    session.delete(article)
    session.commit()
    assert rows(session, "article_version", "operation_type", "id", "name") == [
        (0, 1, "a"),
        (0, 2, "b"),
        (2, 1, None),
    ]


@uses(NullDeletePlugin)
def test_deleted_row_that_comes_back_has_its_values(Article: Any, open_session: Any) -> None:
    """Deleted and inserted again in one transaction: an UPDATE with the new values."""
    session = open_session()
    session.add(article := Article(name="a", content="c"))
    session.commit()
    session.delete(article)
    session.flush()
    session.add(Article(id=1, name="b", content="c"))
    session.commit()
    assert rows(session, "article_version", "transaction_id", "operation_type", "name")[-1][1:] == (
        1,
        "b",
    )


# -- ActivityPlugin


@uses(ActivityPlugin)
def test_activity_needs_no_flush_before(Article: Any, versioning: Any, open_session: Any) -> None:
    """An activity about new objects is stored with their keys and the versions they got."""
    session = open_session()
    Activity = versioning.activity_cls
    article, target = Article(name="a"), Article(name="t")
    activity = Activity(verb="create", object=article, target=target, data={"by": "mail"})
    session.add_all([article, target, activity])
    session.commit()
    assert (activity.object, activity.target) == (article, target)
    assert activity.object_version is article.versions[0]
    assert activity.target_version is target.versions[0]
    assert activity.transaction is article.versions[0].transaction
    assert (activity.object_type, activity.object_id, activity.data) == (
        "Article",
        article.id,
        {"by": "mail"},
    )
    assert activity.actor is None


@uses(ActivityPlugin)
def test_activity_alone_makes_a_transaction(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """An activity about an unchanged object has a transaction of its own, and its last version."""
    session = open_session()
    session.add(article := Article(name="a"))
    session.commit()
    activity = versioning.activity_cls(verb="read", object=article)
    session.add(activity)
    session.commit()
    assert transaction_rows(session, versioning) == 2
    assert activity.transaction_id != article.versions[0].transaction_id
    assert activity.object_version is article.versions[0]


@uses(ActivityPlugin)
def test_activity_about_an_object_that_was_not_added(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """An activity about something without a key would be about nothing: it is refused."""
    session = open_session()
    session.add(versioning.activity_cls(verb="create", object=Article(name="a")))
    with pytest.raises(VersioningError, match=r"object of activity 'create' is a Article"):
        session.flush()


@uses(ActivityPlugin)
def test_activity_about_deleted_object(Article: Any, versioning: Any, open_session: Any) -> None:
    """The version of an object that the same flush deletes is the DELETE version."""
    session = open_session()
    session.add(article := Article(name="a"))
    session.commit()
    activity = versioning.activity_cls(verb="delete", object=article)
    session.add(activity)
    session.delete(article)
    session.commit()
    assert activity.object is None
    assert activity.object_version.operation_type == 2


@uses(ActivityPlugin)
def test_activity_forgets_a_version_that_was_taken_back(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """When a change comes to nothing, the activity keeps its transaction and the version before."""
    session = open_session()
    session.add(article := Article(name="a"))
    session.commit()
    article.name = "b"
    activity = versioning.activity_cls(verb="edit", object=article)
    session.add(activity)
    session.flush()
    article.name = "a"
    session.commit()
    assert article.versions.count() == 1
    assert activity.transaction is not None
    assert activity.object_version is article.versions[0]


@uses(ActivityPlugin)
def test_activity_in_a_savepoint_that_is_rolled_back(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """An activity of a rolled-back savepoint is gone; one after it is stored as ever."""
    session = open_session()
    Activity = versioning.activity_cls
    session.add(article := Article(name="a"))
    session.flush()
    with session.begin_nested() as savepoint:
        session.add(Activity(verb="never", object=article))
        session.flush()
        savepoint.rollback()
    session.add(Activity(verb="create", object=article))
    session.commit()
    found = session.scalars(sa.select(Activity)).all()
    assert [(a.verb, a.object_version) for a in found] == [("create", article.versions[0])]


@uses(ActivityPlugin)
def test_activity_about_any_key(Tag: Any, versioning: Any, Base: Any, open_session: Any) -> None:
    """Objects with composite and with non-integer keys, and unversioned ones, can be meant."""

    class Device(Base):
        __tablename__ = "device"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True)

    session = open_session()
    Activity = versioning.activity_cls
    tag, device = Tag(lang="en", word="w"), Device(id=uuid.uuid4())
    activity = Activity(verb="tag", object=tag, target=device)
    session.add_all([activity, tag, device])
    session.commit()
    session.expire_all()
    assert (activity.object, activity.target) == (tag, device)
    assert (activity.object_version, activity.target_version) == (
        session.scalars(sa.select(version_class(Tag))).one(),
        None,
    )
    assert session.scalars(sa.select(Activity).where(Activity.object == tag)).one() is activity
    assert session.scalars(sa.select(Activity).where(Activity.target == device)).one() is activity


@uses(ActivityPlugin)
def test_activities_are_found_by_object(Article: Any, versioning: Any, open_session: Any) -> None:
    """Activity.object can be compared with an object and asked for its class."""
    session = open_session()
    Activity = versioning.activity_cls
    one, two = Article(name="1"), Article(name="2")
    session.add_all([one, two, Activity(verb="x", object=one), Activity(verb="y", object=two)])
    session.commit()
    verbs = sa.select(Activity.verb)
    assert session.scalars(verbs.where(Activity.object == two)).all() == ["y"]
    assert len(session.scalars(verbs.where(Activity.object.is_type(Article))).all()) == 2
    assert len(session.scalars(verbs.where(Activity.target == None)).all()) == 2  # noqa: E711


@uses(ActivityPlugin)
def test_activity_table_of_the_peers_is_enough_for_integer_keys(
    Article: Any, versioning: Any, Base: Any
) -> None:
    """With integer keys only, the table has the peers' columns; any other key then is an error."""

    class Device(Base):
        __tablename__ = "device"
        id: Mapped[str] = mapped_column(sa.String(10), primary_key=True)

    sa.orm.configure_mappers()
    columns = set(versioning.activity_cls.__table__.c.keys())
    assert columns == {
        "id", "verb", "transaction_id", "data", "object_type", "object_id", "object_tx_id",
        "target_type", "target_id", "target_tx_id",
    }  # fmt: skip
    with pytest.raises(ImproperlyConfigured, match=r"Device.*any_key=True"):
        versioning.activity_cls(object=Device(id="d"))


@uses(ActivityPlugin)
@pytest.mark.parametrize("user_cls", ["User"])
def test_actor_is_the_user_of_the_transaction(
    versioning: Any, Base: Any, open_session: Any
) -> None:
    """activity.actor is the user that the transaction context names."""
    from sqlalchemy_history import transaction_context

    class User(Base):
        __tablename__ = "app_user"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)

    session = open_session()
    session.add(user := User())
    session.commit()
    with transaction_context(user_id=user.id):
        activity = versioning.activity_cls(verb="v", object=user)
        session.add(activity)
        session.commit()
    assert activity.actor is user


# -- ChangeLogPlugin


def log(session: Session, versioning: Any) -> list[tuple[Any, ...]]:
    Entry = versioning.changelog_cls
    entries = session.scalars(sa.select(Entry).order_by(Entry.id))
    return [(one.table_name, one.row_id, one.event_type) for one in entries]


@uses(ChangeLogPlugin)
def test_change_log_of_the_seed(Article: Any, versioning: Any, open_session: Any) -> None:
    """Seed 001: INSERT, UPDATE and DELETE of each row, in the transaction that made the change."""
    session = open_session()
    session.add(article := Article(name="a"))
    session.commit()
    article.name = "b"
    session.commit()
    session.delete(article)
    session.flush()
    assert log(session, versioning)[-1] == ("article", 1, "DELETE")
    session.rollback()
    assert log(session, versioning) == [("article", 1, "INSERT"), ("article", 1, "UPDATE")]
    entry = session.scalars(sa.select(versioning.changelog_cls)).first()
    assert entry.timestamp.tzinfo is not None
    assert entry.timestamp.utcoffset() == datetime.timedelta(0)
    assert set(versioning.changelog_cls.__table__.c.keys()) == {
        "id", "table_name", "row_id", "event_type", "timestamp",
    }  # fmt: skip


@uses(ChangeLogPlugin)
def test_change_log_is_batched(
    Article: Any, versioning: Any, open_session: Any, engine: Any, statements: Any
) -> None:
    """A flush adds a constant number of statements to the log, whatever the number of rows."""
    session = open_session()
    counts = []
    for number in (2, 200):
        session.add_all([Article(name=f"{i}") for i in range(number)])
        with statements(engine) as log_:
            session.commit()
        counts.append(len(log_.containing("INSERT", "changelog")))
    assert counts == [1, 1]
    assert len(log(session, versioning)) == 202


@uses(ChangeLogPlugin)
def test_change_log_has_the_net_change(Article: Any, versioning: Any, open_session: Any) -> None:
    """A row that several flushes of a transaction changed has one entry, or none at all."""
    session = open_session()
    session.add_all([one := Article(name="1"), two := Article(name="2")])
    session.commit()
    one.name = "x"
    two.name = "x"
    session.flush()
    one.name = "y"
    session.flush()
    two.name = "2"
    session.commit()
    assert log(session, versioning)[2:] == [("article", 1, "UPDATE")]
    one.name = "z"
    session.flush()
    one.name = "y"
    session.commit()
    assert len(log(session, versioning)) == 3


@uses(ChangeLogPlugin)
def test_change_log_of_transactions_with_one_time(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """What a transaction changes once more, or takes back, is its own alone, whatever its time."""
    session = open_session()
    then = datetime.datetime(2001, 2, 3)
    with transaction_context(issued_at=then):
        session.add(Article(id=1, name="a"))
        session.commit()
        session.get(Article, 1).name = "b"
        session.flush()
        session.get(Article, 1).name = "c"
        session.commit()
        session.add(Article(id=2, name="a"))
        session.flush()
        session.delete(session.get(Article, 2))
        session.commit()
    assert [row[1:] for row in rows(session, "changelog", "id", "row_id", "event_type")] == [
        ("1", "INSERT"),
        ("1", "UPDATE"),
    ]


@uses(ChangeLogPlugin)
def test_change_log_of_composite_keys(Tag: Any, versioning: Any, open_session: Any) -> None:
    """A composite key is kept as a JSON list, and can be searched for."""
    session = open_session()
    session.add(Tag(lang="en", word="ä"))
    session.commit()
    assert log(session, versioning) == [("tag", ["en", "ä"], "INSERT")]
    Entry = versioning.changelog_cls
    assert session.scalars(sa.select(Entry).where(Entry.row_id == ("en", "ä"))).one()
    assert rows(session, "changelog", "row_id") == [('["en", "ä"]',)]


# -- all of them


ALL = (
    TransactionMetaPlugin,
    TransactionChangesPlugin,
    PropertyModTrackerPlugin,
    NullDeletePlugin,
    ActivityPlugin,
    ChangeLogPlugin,
)


@uses(*ALL)
def test_built_in_plugins_work_together(Article: Any, versioning: Any, open_session: Any) -> None:
    """All plugins at once, over an INSERT, an UPDATE and a DELETE."""
    session = open_session()
    tx = versioning.unit_of_work(session).create_transaction(session)
    tx.meta = {"k": "v"}
    article = Article(name="a")
    session.add_all([article, versioning.activity_cls(verb="create", object=article)])
    session.commit()
    article.name = "b"
    session.commit()
    session.delete(article)
    session.commit()
    assert rows(session, "transaction_meta", "value") == [("v",)]
    assert len(rows(session, "transaction_changes", "transaction_id")) == 3
    assert flags(session) == [(0, True, False), (1, True, False), (2, True, True)]
    assert rows(session, "article_version", "operation_type", "name")[-1] == (2, None)
    assert rows(session, "activity", "verb", "object_type") == [("create", "Article")]
    assert len(log(session, versioning)) == 3


@uses(*ALL)
def test_plugins_do_not_touch_what_is_not_versioned(
    Article: Any, versioning: Any, Base: Any, open_session: Any, engine: Any, statements: Any
) -> None:
    """A flush of unversioned objects runs no statement of any plugin."""

    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    session = open_session()
    session.add(Plain())
    with statements(engine) as log_:
        session.commit()
    assert len(log_) == 1


@uses(*ALL)
def test_table_of_a_plugin_that_is_taken(versioning: Any, Base: Any) -> None:
    """A table of the user's with the name of a plugin's is an error that says which."""
    sa.Table("activity", Base.metadata, sa.Column("id", sa.Integer, primary_key=True))

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ImproperlyConfigured, match=r"'activity'.*ActivityPlugin"):
        sa.orm.configure_mappers()


@uses(TransactionMetaPlugin, TransactionChangesPlugin, ActivityPlugin, ChangeLogPlugin)
@pytest.mark.backends("postgresql")
def test_plugin_rows_follow_a_transaction_that_moves(
    Article: Any, versioning: Any, open_session: Any
) -> None:
    """A transaction that must get a newer id takes its rows of every plugin along."""
    session, other = open_session(), open_session()
    session.add_all([article := Article(name="a"), note := Article(name="n")])
    session.commit()
    note.name = "first"
    tx = versioning.unit_of_work(session).create_transaction(session)
    tx.meta = {"k": "v"}
    session.add(activity := versioning.activity_cls(verb="v", object=note))
    session.flush()
    before = tx.id
    other.get(Article, article.id).name = "theirs"
    other.commit()
    session.execute(sa.text("SELECT 1"))
    session.refresh(article, with_for_update=True)
    article.name = "ours"
    session.commit()
    last = article.versions[-1].transaction_id
    assert last > before
    assert tx.id == last
    assert tx.meta == {"k": "v"}
    assert rows(session, "transaction_meta", "transaction_id") == [(last,)]
    assert (last, "Article") in rows(
        session, "transaction_changes", "transaction_id", "entity_name"
    )
    assert before not in {row[0] for row in rows(session, "transaction_changes", "transaction_id")}
    session.expire_all()
    assert activity.transaction is tx
    assert activity.object_version is note.versions[-1]


def test_every_plugin_is_exported() -> None:
    """The plugins of the peers have their names here."""
    assert set(built_in.__all__) >= {cls.__name__ for cls in ALL} | {"Plugin", "PluginCollection"}


@pytest.fixture
def two_bases(versioning: Any, make_base: Any, engine: Any) -> Any:
    """Two Bases of one manager, each in a database of its own, and a session over both."""
    bases = [make_base(), make_base()]
    engines = [engine, sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)]

    class Page(bases[0]):
        __tablename__ = "page"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))

    class Sheet(bases[1]):
        __tablename__ = "sheet"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))

    for base, bind in zip(bases, engines, strict=True):
        base.metadata.create_all(bind)
    yield SimpleNamespace(bases=bases, engines=engines, models=[Page, Sheet])
    engines[1].dispose()


@uses(ChangeLogPlugin, TransactionChangesPlugin, CountRows)
def test_each_base_has_the_tables_of_plugins(two_bases: Any) -> None:
    """A second Base in another database: plugins keep there what was changed there."""
    with Session(binds=dict(zip(two_bases.bases, two_bases.engines, strict=True))) as session:
        session.add_all([cls(id=i, name="a") for i, cls in enumerate(two_bases.models, 1)])
        session.commit()
    for i, engine in enumerate(two_bases.engines, 1):
        with engine.connect() as connection:
            logged = connection.execute(sa.text("SELECT row_id, event_type FROM changelog")).all()
            names = connection.scalars(sa.text("SELECT entity_name FROM transaction_changes")).all()
            counts = connection.execute(sa.text("SELECT name, number FROM row_count")).all()
        assert [tuple(row) for row in logged] == [(str(i), "INSERT")]
        name = two_bases.models[i - 1].__name__
        assert names == [name]
        assert [tuple(row) for row in counts] == [(name.lower(), 1)]


@uses(ActivityPlugin)
@pytest.mark.parametrize("first", [0, 1])
def test_activity_is_about_its_own_database(two_bases: Any, versioning: Any, first: int) -> None:
    """Transactions of two databases may have one id: an activity belongs to that of its own."""
    activity_cls = versioning.activity_cls
    engine = two_bases.engines[1]
    binds = {**dict(zip(two_bases.bases, two_bases.engines, strict=True)), activity_cls: engine}
    with Session(binds=binds) as session:
        session.connection(bind_arguments={"mapper": two_bases.models[first]})
        there = two_bases.models[1](id=1, name="a")
        activity = activity_cls(verb="v", object=there)
        session.add_all([two_bases.models[0](id=1, name="a"), there, activity])
        session.commit()
        assert activity.object_tx_id == activity.transaction_id
