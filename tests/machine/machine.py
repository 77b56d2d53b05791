"""The operations, as rules of a hypothesis state machine.

A rule picks its objects by number from those that there are, and says once, in a function of a
world, what to do with them; :meth:`HistoryMachine.both` does it in the plain and in the versioned
world and compares how it ended. To add an operation, add a rule:

.. code-block:: python

    @rule(kind=st.sampled_from(NUMBERED), pick=PICKS, then=THEN)
    def double_in_bulk(self, kind, pick, then):
        def run(world):
            cls = world.models[kind.name]
            column = getattr(cls, kind.number)
            return world.session.execute(sa.update(cls).values({column: column * 2})).rowcount

        self.both(f"double all {kind}", run)
        self.afterwards(then)

The model needs no word about it: before each UPDATE and DELETE and at each commit it looks at
the tables of the plain world.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .bench import Bench
from .graph import Outcome, Schema, Tree, revert, undo
from .judge import READ, Judge
from .model import HistoryModel, Key, State
from .schema import ENTITIES, KINDS, NUMBERS, RELATIONS, TEXTS, Kind
from .world import Fresh, Stored, Target, World, read_state

__all__ = ["KINDS_BY_NAME", "NUMBERED", "PICKS", "THEN", "HistoryMachine"]

KINDS_BY_NAME = {kind.name: kind for kind in READ}
SCHEMA = Schema(ENTITIES, RELATIONS)
NUMBERED = [kind for kind in KINDS if kind.number]
#: kinds whose key another object of the session does not refer to
KEYED = [KINDS_BY_NAME["Term"], KINDS_BY_NAME["Cell"]]

#: columns without history
UNVERSIONED = [(KINDS_BY_NAME["Article"], "views"), (KINDS_BY_NAME["Cell"], "memo")]

#: child, its reference, parent, the parent's collection
REFERENCES = [
    ("Article", "category", "Category", "articles"),
    ("Category", "lead", "Article", None),
    ("Comment", "reply_to", "Comment", "replies"),
    ("Item", "category", "Category", "items"),
    ("Book", "category", "Category", "items"),
    ("Entry", "term", "Term", "entries"),
]

#: what to revert with an object
GRAPHS = [
    ("Article", ()),
    ("Article", ("comments",)),
    ("Article", ("tags", "category", "comments")),
    ("Article", ("targets",)),
    ("Article", ("sources.comments",)),
    ("Article", ("category.articles.comments",)),
    ("Category", ("articles", "lead")),
    ("Category", ("articles.comments", "tags.articles")),
    ("Category", ("items", "lead.comments")),
    ("Category", ("articles.comments.replies", "tags")),
    ("Tag", ("articles.category",)),
    ("Tag", ("categories",)),
    ("Comment", ("article.tags",)),
    ("Comment", ("replies.replies",)),
    ("Comment", ("reply_to.replies", "article")),
    ("Book", ("category.items",)),
    ("Novel", ()),
    ("Cat", ()),
    ("Cell", ()),
    ("Term", ("entries",)),
    ("Entry", ("term.entries",)),
]

PICKS = st.integers(0, 7)
#: what follows a change: nothing, a flush or a commit
THEN = st.sampled_from(["", "flush", "commit"])


def _values_of(kind: Kind, least: int) -> st.SearchStrategy[tuple[Kind, dict[str, Any]]]:
    optional = {name: st.sampled_from(values) for name, values in kind.values.items()}
    found = st.fixed_dictionaries({}, optional=optional)
    return st.tuples(st.just(kind), found.filter(lambda values: len(values) >= least))


CREATIONS = st.sampled_from(KINDS).flatmap(lambda kind: _values_of(kind, 0))
CHANGES = st.sampled_from(KINDS).flatmap(lambda kind: _values_of(kind, 1))


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+", "#", text)


def _delete(world: World, obj: Any) -> None:
    """Delete a stored object.

    Of an object with a reference by ``post_update``, one flush clears the reference and deletes the
    row; which of the two values its last version has is left open. So it is cleared before.
    """
    if getattr(obj, "lead_id", None) is not None:
        obj.lead = None
        world.session.flush()
    world.session.delete(obj)


def _tree(relations: Iterable[str]) -> Tree:
    tree: dict[str, Any] = {}
    for path in relations:
        below = tree
        for name in path.split("."):
            below = below.setdefault(name, {})
    return tree


class HistoryMachine(RuleBasedStateMachine):
    """Do the same in both worlds; after each commit, let the judge compare history and model."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.model = HistoryModel(ENTITIES)
        self.bench.empty()
        self.plain = World(
            title="plain",
            engine=self.bench.plain_engine,
            models=self.bench.plain,
            watch=self._observe,
        )
        self.versioned = World(
            title="versioned", engine=self.bench.engine, models=self.bench.versioned
        )
        self.judge = Judge(self.bench, self.model)
        self.failed = False

    def both(self, what: str, run: Callable[[World], Any]) -> bool:
        """Do it in both worlds; it must end alike. If it fails, roll back to the last savepoint."""
        self.log.append(what)
        outcomes = [self._attempt(world, run) for world in (self.plain, self.versioned)]
        expected, found = outcomes
        if expected[:2] != found[:2]:
            raise self.trouble(
                f"{what}: without versioning: {expected[:2]}, with: {found[:2]}"
            ) from found[2] or expected[2]
        if more := found[3] - expected[3]:
            raise self.trouble(f"{what}: warnings that are not there without versioning: {more}")
        if expected[2] is None:
            if self.plain.wrote and self.plain.session.in_transaction():
                self.observe()
            return True
        self.log.append(f"  -> {type(expected[2]).__name__}")
        if self.plain.nested:
            self.end_savepoint(keep=False)
        else:
            self.roll_back()
        return False

    def _attempt(
        self, world: World, run: Callable[[World], Any]
    ) -> tuple[Any, str, Exception | None, Counter[tuple[str, str]]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result, error = run(world), None
            except SQLAlchemyError as problem:
                result, error = None, problem
            except Exception as problem:
                if world is self.plain:
                    raise self.trouble("the rule itself fails, without versioning") from problem
                result, error = None, problem
        issued = Counter(
            (one.category.__name__, _without_addresses(str(one.message))) for one in caught
        )
        return result, type(error).__name__ if error else "", error, issued

    def trouble(self, message: str) -> AssertionError:
        """A failure, with all that was done before it."""
        self.failed = True
        return AssertionError("\n".join(["", *self.log, "", message]))

    def _observe(self, connection: sa.Connection, tables: list[str] | None = None) -> None:
        found = read_state(connection, self.bench.plain, tables)
        self.model.observe({**self.model.current, **found})

    def observe(self) -> None:
        """Look at the plain world."""
        self._observe(self.plain.session.connection())
        self.plain.wrote = False

    def choose(self, name: str, pick: int, *, fresh: bool = True) -> Target | None:
        """The object of this class with that number: stored ones by key, then fresh ones."""
        kind = KINDS_BY_NAME[name]
        found: list[Target] = [Stored(name, key) for key in kind.keys(self.model.current)]
        if fresh:
            cls = self.plain.models[name]
            found += [
                Fresh(name, place)
                for place, obj in enumerate(self.plain.fresh)
                if type(obj) is cls and obj in self.plain.session
            ]
        return found[pick % len(found)] if found else None

    def change(
        self, what: str, target: Target | None, act: Callable[[World, Any], Any], then: str = ""
    ) -> None:
        """Do something to one object, in both worlds."""
        if target is None:
            return

        def run(world: World) -> Any:
            obj = world.find(target)
            if obj is None:
                return "gone"
            return act(world, obj)

        if self.both(f"{what}: {target}", run):
            self.afterwards(then)

    def afterwards(self, then: str, sample: int = 0) -> None:
        """Flush or commit, or neither; inside a savepoint, flush rather than end it."""
        if then == "flush" or (then and self.plain.nested):
            self.flush()
        elif then == "commit":
            self.commit(sample or len(self.log))

    def _settled(self) -> None:
        for world in (self.plain, self.versioned):
            world.fresh.clear()

    def flush(self) -> bool:
        """Flush both sessions; after it, all that was fresh has a row."""
        done = self.both("flush", lambda world: world.session.flush())
        if done:
            self._settled()
        return done

    def commit(self, sample: int) -> None:
        """Commit, savepoints included, and let the judge look at everything."""
        if not self.flush():
            return
        if not self.both("commit", lambda world: world.session.commit()):
            return
        for world in (self.plain, self.versioned):
            world.nested.clear()
        self.committed(sample)

    def committed(self, sample: int) -> None:
        """A transaction was committed, the session's or another client's: look at everything."""
        ordinal = self.model.commit()
        self.log.append(f"  -> transaction {ordinal}")
        self._judge(lambda: self.judge.after_commit(ordinal, sample))

    def roll_back(self) -> None:
        """Roll the whole transaction back; the history is as it was."""
        self.both("rollback", World.roll_back)
        self._settled()
        self.model.rollback()
        self._judge(self.judge.tables)

    def end_savepoint(self, *, keep: bool) -> None:
        """Release the innermost savepoint, or roll it back."""
        if keep:
            if not self.flush():
                return
            if not self.both("release", lambda world: world.nested[-1].commit()):
                return
            self.model.release()
        else:
            self.both("rollback to savepoint", lambda world: world.nested[-1].rollback())
            self.model.rollback_savepoint()
        for world in (self.plain, self.versioned):
            world.nested.pop()
        self._settled()

    def _judge(self, look: Callable[[], list[str]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if found := look():
                raise self.trouble("\n".join(found))

    @initialize(
        autoflush=st.booleans(),
        expire_on_commit=st.booleans(),
        rows=st.sampled_from([1, 2, 1, 2, 0]),
        then=THEN,
    )
    def start(self, autoflush: bool, expire_on_commit: bool, rows: int, then: str) -> None:
        """A session, and in most runs some rows of each class to work on."""
        self.new_session(autoflush, expire_on_commit)
        for place in range(rows):
            for kind in KINDS:
                values = {name: found[place] for name, found in kind.values.items()}
                key = None if kind.made else kind.given[place]
                self.log.append(f"add {kind} {key or ''} {values}")
                for world in (self.plain, self.versioned):
                    world.add(world.make(kind, key, values))
        self.afterwards(then)

    def new_session(self, autoflush: bool, expire_on_commit: bool) -> None:
        self.roll_back()
        self.both(
            f"new session: {autoflush=}, {expire_on_commit=}",
            lambda world: world.open(autoflush=autoflush, expire_on_commit=expire_on_commit),
        )

    @rule(
        what=st.sampled_from(
            ["commit", "flush", "rollback", "expire all", "expunge all", "new session"]
        ),
        sample=st.integers(0, 1000),
    )
    def session(self, what: str, sample: int) -> None:
        """What is done to the session as a whole."""
        if what == "commit":
            self.commit(sample)
        elif what == "flush":
            self.flush()
        elif what == "rollback":
            self.roll_back()
        elif what == "expire all":
            self.both(what, lambda world: world.session.expire_all())
        elif what == "expunge all":
            # What is not flushed is lost, and the next use of an object loads it anew.
            self.both(what, World.expunge_all)
        else:
            self.new_session(bool(sample & 1), bool(sample & 2))

    @rule(kind=st.sampled_from(READ), pick=PICKS, end=st.sampled_from(["commit", "rollback"]))
    def read_history(self, kind: Kind, pick: int, end: str) -> None:
        """The user's own session reads: what it has read before must not make it read wrong."""
        if not self.bench.reading:
            return
        if end == "commit":
            self.commit(pick)
        else:
            self.roll_back()
        keys = kind.keys(self.model.committed)
        if not keys or self.plain.nested:
            return
        key = keys[pick % len(keys)]
        target = Stored(kind.name, key)

        def run(world: World) -> bool:
            # Reading begins a transaction, whose rollback would expire: so in both worlds.
            world.session.connection()
            return world.find(target) is None

        self.both(f"read {target}", run)
        self._judge(lambda: self.judge.one_object(self.versioned.session, kind, key))

    @rule(what=st.sampled_from(["begin", "release", "roll back"]))
    def savepoint(self, what: str) -> None:
        """Savepoints, at most three deep."""
        if what != "begin":
            if self.plain.nested:
                self.end_savepoint(keep=what == "release")
        elif len(self.plain.nested) < 3 and self.flush():
            self.both("savepoint", lambda world: world.nested.append(world.session.begin_nested()))
            self.model.savepoint()

    @precondition(lambda self: self.plain.nested)
    @rule(keep=st.booleans())
    def end_nested(self, keep: bool) -> None:
        """The same, so that a savepoint does not only ever begin."""
        self.end_savepoint(keep=keep)

    @rule(
        kind=st.sampled_from(KINDS),
        pick=PICKS,
        how=st.sampled_from(["expire", "refresh", "expunge"]),
    )
    def expire_one(self, kind: Kind, pick: int, how: str) -> None:
        def act(world: World, obj: Any) -> None:
            if obj in world.session.deleted or obj not in world.session:
                return
            getattr(world.session, how)(obj)

        self.change(how, self.choose(kind.name, pick, fresh=False), act)

    @rule(pick=PICKS)
    def load_deferred(self, pick: int) -> None:
        self.change("load body", self.choose("Article", pick, fresh=False), lambda _, obj: obj.body)

    @rule(creation=CREATIONS, given=st.one_of(st.none(), PICKS), then=THEN)
    def create(
        self, creation: tuple[Kind, Mapping[str, Any]], given: int | None, then: str
    ) -> None:
        """A new row; its key can clash with one that there is, also of another class."""
        kind, values = creation
        key: Key | None = None
        if given is not None or not kind.made:
            key = kind.given[(given or 0) % len(kind.given)]
            if not self._same_class(kind, key):
                return
        done = self.both(
            f"add {kind} {key or ''} {values}",
            lambda world: world.add(world.make(kind, key, values)),
        )
        if done:
            self.afterwards(then)

    def _same_class(self, kind: Kind, key: Key, *, always: bool = False) -> bool:
        """Whether the key is free of rows of another class, or was so before this transaction.

        With joined inheritance, a row that changes its class within a transaction has no version of
        one class that could say so. ``always``: with single-table inheritance too.
        """
        if not (kind.joined or always):
            return True
        rows = [state[kind.table].get(key) for state in (self.model.committed, self.model.current)]
        fresh = [obj for obj in self.plain.fresh if sa.inspect(obj).dict.get("id") == key[0]]
        return all(row is None or kind.owns(row) for row in rows) and not fresh

    @rule(pick=st.integers(0, 30), place=PICKS, then=THEN)
    def reinsert(self, pick: int, place: int, then: str) -> None:
        """A key that was deleted, in this transaction or before it, is used again."""
        dead = [
            (kind, key)
            for kind in KINDS
            for key in sorted({key for state in self.model.states for key in kind.keys(state)})
            if key not in self.model.current[kind.table] and self._same_class(kind, key)
        ]
        if not dead:
            return
        kind, key = dead[pick % len(dead)]
        values = {
            name: found[place % len(found)] for name, found in kind.values.items() if place % 2
        }
        if self.both(f"again {kind}{key} {values}", lambda w: w.add(w.make(kind, key, values))):
            self.afterwards(then)

    @rule(change=CHANGES, pick=PICKS, then=THEN)
    def update(self, change: tuple[Kind, Mapping[str, Any]], pick: int, then: str) -> None:
        kind, values = change

        def act(_: World, obj: Any) -> None:
            for name, value in values.items():
                setattr(obj, name, value)

        self.change(f"set {values}", self.choose(kind.name, pick), act, then)

    @rule(
        kind=st.sampled_from([kind for kind in KINDS if kind.values]),
        pick=PICKS,
        how=st.sampled_from(["case", "space", "nothing"]),
        then=THEN,
    )
    def update_slightly(self, kind: Kind, pick: int, how: str, then: str) -> None:
        """What a database may hold equal is a change: case, trailing space, NULL and nothing."""

        def act(_: World, obj: Any) -> None:
            for name, found in kind.values.items():
                value = getattr(obj, name)
                if found is TEXTS and how == "case" and value:
                    setattr(obj, name, value.swapcase())
                elif found is TEXTS and how == "space" and value is not None:
                    setattr(obj, name, value[:-1] if value.endswith(" ") else f"{value} ")
                elif how == "nothing":
                    empty = "" if found is TEXTS else 0 if found is NUMBERS else value
                    setattr(obj, name, empty if value is None else None)

        self.change(f"set slightly ({how})", self.choose(kind.name, pick, fresh=False), act, then)

    @rule(what=st.sampled_from(UNVERSIONED), pick=PICKS, place=st.integers(0, 4), then=THEN)
    def update_unversioned(self, what: tuple[Kind, str], pick: int, place: int, then: str) -> None:
        """An excluded column is no change, unless the statement changes another one by itself."""
        kind, name = what
        value = kind.values[name][place]
        self.change(
            f"set unversioned {name}={value!r}",
            self.choose(kind.name, pick, fresh=False),
            lambda _, obj: setattr(obj, name, value),
            then,
        )

    @rule(
        kind=st.sampled_from(KINDS),
        pick=PICKS,
        how=st.sampled_from(["loaded", "expired", "unloaded"]),
        then=THEN,
    )
    def set_equal(self, kind: Kind, pick: int, how: str, then: str) -> None:
        """Every attribute is set to the value that it has: not a change."""

        def act(world: World, obj: Any) -> None:
            values = {name: getattr(obj, name) for name in kind.values}
            if obj not in world.session or obj in world.session.deleted:
                return
            if how == "expired":
                world.session.expire(obj)
            elif how == "unloaded":
                world.session.expire(obj, list(values))
            for name, value in values.items():
                setattr(obj, name, value)

        self.change(f"set equal ({how})", self.choose(kind.name, pick, fresh=False), act, then)

    @rule(change=CHANGES, pick=PICKS, then=THEN)
    def there_and_back(self, change: tuple[Kind, Mapping[str, Any]], pick: int, then: str) -> None:
        """A, B, A over several flushes."""
        kind, values = change
        target = self.choose(kind.name, pick, fresh=False)

        def act(world: World, obj: Any) -> None:
            before = {name: getattr(obj, name) for name in values}
            for state in (values, before):
                for name, value in state.items():
                    setattr(obj, name, value)
                world.session.flush()

        self.change(f"there and back {values}", target, act, then)

    @rule(kind=st.sampled_from(NUMBERED), pick=PICKS, add=st.sampled_from([0, 1, None]), then=THEN)
    def update_by_expression(self, kind: Kind, pick: int, add: int | None, then: str) -> None:
        """The database computes the value; adding 0 or to NULL is not a change."""

        def act(world: World, obj: Any) -> None:
            column = getattr(world.models[kind.name], str(kind.number))
            setattr(obj, str(kind.number), sa.null() if add is None else column + add)

        self.change(f"{kind.number} + {add}", self.choose(kind.name, pick, fresh=False), act, then)

    @rule(kind=st.sampled_from((*KINDS, "Comment")), pick=PICKS, then=THEN)
    def delete(self, kind: Kind | str, pick: int, then: str) -> None:
        def act(world: World, obj: Any) -> None:
            if obj in world.session.new:
                # SQLAlchemy numbers new objects by how many there are: without this flush, two
                # would have one number, and the order of their INSERTs would be left to chance.
                world.session.expunge(obj)
                world.session.flush()
            else:
                _delete(world, obj)

        self.change("delete", self.choose(str(kind), pick), act, then)

    @rule(change=CHANGES, pick=PICKS, flush=st.booleans(), then=THEN)
    def update_and_delete(
        self, change: tuple[Kind, Mapping[str, Any]], pick: int, flush: bool, then: str
    ) -> None:
        """The DELETE version has the values that the row had last: the new ones only if flushed."""
        kind, values = change

        def act(world: World, obj: Any) -> None:
            for name, value in values.items():
                setattr(obj, name, value)
            if flush:
                world.session.flush()
            _delete(world, obj)

        target = self.choose(kind.name, pick, fresh=False)
        self.change(f"set {values}, {flush=}, and delete", target, act, then)

    @rule(change=CHANGES, pick=PICKS, flush=st.booleans(), then=THEN)
    def replace(
        self, change: tuple[Kind, Mapping[str, Any]], pick: int, flush: bool, then: str
    ) -> None:
        """Delete and insert of one key: a row switch, or, with a flush between, two statements."""
        kind, values = change
        target = self.choose(kind.name, pick, fresh=False)
        if target is None:
            return
        assert isinstance(target, Stored)
        key = target.key

        def act(world: World, obj: Any) -> None:
            _delete(world, obj)
            if flush:
                world.session.flush()
            world.add(world.make(kind, key, values))

        self.change(f"replace by {values}, {flush=}", target, act, then)

    @rule(change=CHANGES, given=PICKS, pick=st.one_of(st.none(), PICKS), then=THEN)
    def merge(
        self,
        change: tuple[Kind, Mapping[str, Any]],
        given: int,
        pick: int | None,
        then: str,
    ) -> None:
        """``Session.merge()`` updates the row of this key, or makes it."""
        kind, values = change
        key = kind.given[given % len(kind.given)]
        if pick is not None:
            target = self.choose(kind.name, pick, fresh=False)
            if isinstance(target, Stored):
                key = target.key
        if not self._same_class(kind, key, always=True):
            return

        def run(world: World) -> None:
            merged = world.session.merge(world.make(kind, key, values))
            if merged in world.session.new:
                world.fresh.append(merged)
            else:
                world.kept[f"{kind}{key}"] = merged

        if self.both(f"merge {kind}{key} {values}", run):
            self.afterwards(then)

    @rule(kind=st.sampled_from(KEYED), pick=PICKS, given=PICKS, back=st.booleans(), then=THEN)
    def change_key(self, kind: Kind, pick: int, given: int, back: bool, then: str) -> None:
        """DELETE of the old key, INSERT of the new one; nothing if it is changed back."""
        target = self.choose(kind.name, pick, fresh=False)
        if target is None:
            return
        assert isinstance(target, Stored)
        old, new = target.key, kind.given[given % len(kind.given)]

        def act(world: World, obj: Any) -> None:
            for key in (new, old) if back else (new,):
                for name, value in zip(kind.key, key, strict=True):
                    setattr(obj, name, value)
                world.session.flush()

        self.change(f"new key {new}{', and back' if back else ''}", target, act, then)

    @rule(
        reference=st.sampled_from(REFERENCES),
        pick=PICKS,
        other=st.one_of(st.none(), PICKS),
        through=st.booleans(),
        then=THEN,
    )
    def refer(
        self,
        reference: tuple[str, str, str, str | None],
        pick: int,
        other: int | None,
        through: bool,
        then: str,
    ) -> None:
        """Another parent or none, set on the child or through the parents' collections."""
        name, attribute, target_name, collection = reference
        target = None if other is None else self.choose(target_name, other)

        def act(world: World, obj: Any) -> None:
            new = None if target is None else world.find(target)
            old = getattr(obj, attribute)
            if collection is None or not through:
                setattr(obj, attribute, new)
            elif new is not None:
                getattr(new, collection).append(obj)
            elif old is not None:
                getattr(old, collection).remove(obj)

        self.change(f"{attribute} is {target}, {through=}", self.choose(name, pick), act, then)

    @rule(pick=PICKS, text=st.sampled_from([None, "", "a"]), then=THEN)
    def comment(self, pick: int, text: str | None, then: str) -> None:
        def act(world: World, obj: Any) -> None:
            comment = world.models["Comment"](text=text)
            obj.comments.append(comment)
            world.kept[f"comment {len(self.log)}"] = comment

        self.change(f"comment {text!r}", self.choose("Article", pick), act, then)

    @rule(pick=PICKS, other=st.one_of(st.none(), PICKS), then=THEN)
    def note(self, pick: int, other: int | None, then: str) -> None:
        """A row that the database will delete with its article, and part from its category."""
        category = None if other is None else self.choose("Category", other, fresh=False)

        def act(world: World, obj: Any) -> None:
            about = None if category is None else world.find(category)
            world.session.add(world.models["Note"](article=obj, category=about))

        target = self.choose("Article", pick, fresh=False)
        self.change(f"note, {category}", target, act, then)

    @rule(pick=PICKS, place=PICKS, then=THEN)
    def drop_comment(self, pick: int, place: int, then: str) -> None:
        """A child that is taken from its parent is deleted as an orphan."""

        def act(world: World, obj: Any) -> None:
            if not obj.comments:
                return
            comment = obj.comments[place % len(obj.comments)]
            pending = comment in world.session.new
            obj.comments.remove(comment)
            if pending:  # as in ``delete``
                world.session.flush()

        self.change(f"drop comment {place}", self.choose("Article", pick), act, then)

    @rule(
        how=st.sampled_from(
            [
                ("Article", "tags", "Tag"),
                ("Tag", "articles", "Article"),
                ("Article", "targets", "Article"),
                ("Article", "sources", "Article"),
                ("Category", "tags", "Tag"),
            ]
        ),
        pick=PICKS,
        other=PICKS,
        times=st.sampled_from([1, 2, 3]),
        flush=st.booleans(),
        then=THEN,
    )
    def toggle_link(
        self,
        how: tuple[str, str, str],
        pick: int,
        other: int,
        times: int,
        flush: bool,
        then: str,
    ) -> None:
        """Add the link if it is not there, remove it if it is; and again, in one transaction."""
        name, collection, target_name = how
        target = self.choose(target_name, other)

        def act(world: World, obj: Any) -> None:
            linked = world.find(target) if target is not None else None
            if linked is None:
                return
            for _ in range(times):
                links = getattr(obj, collection)
                (links.remove if linked in links else links.append)(linked)
                if flush:
                    world.session.flush()

        self.change(
            f"toggle {collection} {times} times with {target}, {flush=}",
            self.choose(name, pick),
            act,
            then,
        )

    @rule(graph=st.sampled_from(GRAPHS), pick=PICKS, moment=st.integers(0, 30), then=THEN)
    def revert(self, graph: tuple[str, tuple[str, ...]], pick: int, moment: int, then: str) -> None:
        """An object, with relations around it, goes back to a moment at which it was there."""
        kind, relations = KINDS_BY_NAME[graph[0]], graph[1]
        if not self.bench.reading or not self.flush():
            return
        found = [
            (ordinal, key)
            for ordinal in self.model.transactions
            for key in kind.keys(self.model.states[ordinal])
        ]
        if not found:
            return
        ordinal, key = found[(moment * 8 + pick) % len(found)]
        state, now = self.model.states[ordinal], self.model.current
        outcome = revert(SCHEMA, state, now, kind.table, key, _tree(relations))
        identity = self.judge.identity(ordinal)
        if not self._same_classes(outcome.rows, state, now):
            return

        def act(session: Session) -> bool:
            library = self.bench.library
            cls = library.version_class(self.bench.versioned[kind.name])
            statement = library.as_of(self.bench.versioned[kind.name], identity).where(
                *(getattr(cls, name) == value for name, value in zip(kind.key, key, strict=True))
            )
            session.scalars(statement).one().revert(relations=relations)
            return True

        self._go_back(f"revert {kind}{key} {relations} to {ordinal}", outcome, act, then)

    @rule(moment=st.integers(0, 30), overwrite=st.booleans(), then=THEN)
    def undo(self, moment: int, overwrite: bool, then: str) -> None:
        """All that a transaction did is undone, or what was changed since is a conflict."""
        if not self.bench.reading or not self.flush() or not self.model.transactions:
            return
        ordinal = self.model.transactions[moment % len(self.model.transactions)]
        before, after = self.model.states[ordinal - 1 : ordinal + 1]
        now = self.model.current
        outcome = undo(SCHEMA, before, after, now)
        identity = self.judge.identity(ordinal)
        rows = [
            (table, key)
            for table in self.model.tables
            for key in {**before[table], **after[table]}
            if before[table].get(key) != after[table].get(key)
        ]
        if not self._same_classes(rows, before, after, now):
            return
        # as in ``_delete``; and which numbers new rows get is left open
        led = (now[table][key].get("lead_id") for table, key in outcome.deleted)
        numbered = [link for link in outcome.linked if link[0] == "article_link"]
        if len(numbered) > 1 or any(led):
            return

        def act(session: Session) -> bool:
            library = self.bench.library
            transaction = session.get(library.transaction_cls, identity)
            return library.undo(session, transaction, overwrite)

        done = overwrite or not outcome.conflict
        self._go_back(f"undo {ordinal}, {overwrite=}", outcome if done else None, act, then)

    def _go_back(
        self, what: str, outcome: Outcome | None, act: Callable[[Session], bool], then: str
    ) -> None:
        """The library acts in the versioned world; in the plain world, the outcome is written.

        ``None`` is the outcome where the library refuses.
        """

        def run(world: World) -> bool:
            if world is self.versioned:
                done = act(world.session)
            elif done := outcome is not None:
                world.write(outcome)
            world.session.flush()
            world.expunge_all()
            return done

        if self.both(what, run):
            self.afterwards(then)

    def _same_classes(self, rows: Iterable[tuple[str, Key]], *states: State) -> bool:
        """No row is of another class in one of the states, or was so before this transaction."""
        states = (*states, self.model.committed)
        return all(
            len({state[table][key].get(name) for state in states if key in state[table]}) < 2
            for table, key in rows
            for name in ("kind", "type")
        )

    @rule(pick=PICKS, keys=st.sets(PICKS, max_size=4), then=THEN)
    def replace_links(self, pick: int, keys: set[int], then: str) -> None:
        targets = {str(t): t for key in sorted(keys) if (t := self.choose("Tag", key))}

        def act(world: World, obj: Any) -> None:
            found = [world.find(target) for target in targets.values()]
            obj.tags = [tag for tag in found if tag is not None]

        self.change(f"tags are {list(targets)}", self.choose("Article", pick), act, then)

    @invariant()
    def sessions_are_alike(self) -> None:
        """Versioning adds no object to the session, and loads no column of the user's objects."""
        if self.failed:
            return
        expected, found = self._of_session(self.plain), self._of_session(self.versioned)
        if expected != found:
            raise self.trouble(
                "new, dirty and deleted objects, and columns that are not loaded:\n"
                f"without versioning: {expected}\nwith:               {found}"
            )

    def _of_session(self, world: World) -> Any:
        session = world.session
        unloaded = {
            name: sorted(sa.inspect(obj).unloaded & self.bench.columns[type(obj).__name__])
            for name, obj in world.kept.items()
            if obj in session
        }
        return (len(session.new), len(session.dirty), len(session.deleted)), unloaded

    def teardown(self) -> None:
        try:
            if not self.failed:
                self.commit(0)
                self._judge(self.judge.everything)
        finally:
            for world in (self.plain, self.versioned):
                world.close()
