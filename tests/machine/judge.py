"""Reads the history from the database and compares it with the model.

The tables are read as they are, through ``Table`` objects of our own; what the library offers for
reading is then asked in a session of its own. A method returns what is wrong, as lines of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import (
    QueryableAttribute,
    Session,
    joinedload,
    selectinload,
    subqueryload,
)

from .bench import Bench
from .model import DELETE, HistoryModel, Key, Row, Version
from .schema import KINDS, RELATIONS, Kind
from .world import read_state

__all__ = ["READ", "Judge"]

TRANSACTION = sa.table("transaction", sa.column("id", sa.BigInteger))
#: kinds to ask the version classes of: all that have a class of their own
READ = (*KINDS, Kind(name="Comment", table="comment"))
#: how relations are loaded: lazily, or with the objects
LOADS: tuple[Any, ...] = (None, selectinload, joinedload, subqueryload)


class Judge:
    """Compares one bench's database with one model."""

    def __init__(self, bench: Bench, model: HistoryModel) -> None:
        self.bench = bench
        self.model = model
        self.validity = bench.library.strategy == "validity"
        #: transaction id -> ordinal
        self.ordinals: dict[int, int] = {}
        models = bench.versioned
        extra: dict[str, Any] = {"transaction_id": sa.BigInteger, "operation_type": sa.SmallInteger}
        if self.validity:
            extra["end_transaction_id"] = sa.BigInteger
        self._sources = {}
        for name in model.tables:
            columns = bench.plain.versioned_columns(name)
            types = {**{one.name: one.type for one in columns}, **extra}
            source = sa.table(f"{name}_version", *(sa.column(*one) for one in types.items()))
            names = [one.name for one in columns]
            places = [names.index(one.name) for one in bench.plain.key_columns(name)]
            self._sources[name] = (source, names, places)
        self._models = models

    def after_commit(self, ordinal: int | None, sample: int) -> list[str]:
        """The transaction was committed: tables, and some of what can be asked."""
        with self.bench.engine.connect() as connection:
            found = self._new_transactions(connection, ordinal) or self._tables(connection)
        if found or not self.bench.reading or ordinal is None:
            return found
        with Session(self.bench.engine) as session:
            changed = [self._chosen(READ, sample), self._chosen(READ, sample * 7 + ordinal)]
            return [
                *self._classes(session, changed),
                *self._moments(session, self._some_moments(sample), changed),
                *self._objects(session, sample),
                *self._entities(session, ordinal),
            ]

    def everything(self) -> list[str]:
        """Every class and every transaction."""
        if not self.bench.reading:
            return []
        with Session(self.bench.engine) as session:
            found = self._classes(session, READ)
            found += self._moments(session, self.model.transactions, READ)
        for ordinal in self.model.transactions[-3:]:
            found += self._past(ordinal)
        return found

    def identity(self, ordinal: int) -> int:
        """The id of a transaction."""
        return next(identity for identity, number in self.ordinals.items() if number == ordinal)

    def tables(self) -> list[str]:
        """The tables alone: all versions, the chain law, the live rows."""
        with self.bench.engine.connect() as connection:
            return self._new_transactions(connection, None) or self._tables(connection)

    def _chosen(self, kinds: Iterable[Kind], sample: int) -> Kind:
        lively = [kind for kind in kinds if self.model.versions(kind.table)] or list(kinds)
        return lively[sample % len(lively)]

    def _some_moments(self, sample: int) -> list[int]:
        numbers = list(self.model.transactions)
        return sorted({numbers[-1], numbers[sample % len(numbers)]})

    def _new_transactions(self, connection: Connection, ordinal: int | None) -> list[str]:
        """One transaction row for a transaction that changed something, none for any other."""
        identities = set(connection.scalars(sa.select(TRANSACTION.c.id)))
        lost = set(self.ordinals) - identities
        new = sorted(identities - set(self.ordinals))
        if lost:
            return [f"transaction rows are lost: {sorted(lost)}"]
        if len(new) != (ordinal is not None):
            return [f"{len(new)} new transaction rows {new}, expected {int(ordinal is not None)}"]
        if new and ordinal is not None:
            if self.ordinals and new[0] <= max(self.ordinals):
                return [f"transaction id {new[0]} is not greater than {max(self.ordinals)}"]
            self.ordinals[new[0]] = ordinal
        return []

    def _tables(self, connection: Connection) -> list[str]:
        found = []
        live = read_state(connection, self._models)
        for table in self.model.tables:
            found += _differences(
                f"live rows of {table}", dict(self.model.committed[table]), dict(live[table])
            )
            versions = self._versions(connection, table)
            found += _differences(
                f"{table}_version", _one_by_one(self.model.versions(table)), _one_by_one(versions)
            )
            found += self._chains(table, versions, live[table])
        return found

    def _versions(self, connection: Connection, table: str) -> dict[Key, list[Version]]:
        source, names, places = self._sources[table]
        columns = [source.c[name] for name in names]
        versions: dict[Key, list[Version]] = {}
        tracked = (source.c.transaction_id, source.c.operation_type)
        end = source.c.end_transaction_id if self.validity else sa.null()
        statement = sa.select(*tracked, end, *columns).order_by(source.c.transaction_id)
        for transaction, operation, last, *values in connection.execute(statement):
            versions.setdefault(tuple(values[place] for place in places), []).append(
                Version(
                    self.ordinals.get(transaction, -transaction),
                    None if last is None else self.ordinals.get(last, -last),
                    operation,
                    dict(zip(names, values, strict=True)),
                )
            )
        if not self.validity:
            for chain in versions.values():
                starts = [version.transaction for version in chain]
                chain[:] = [
                    Version(version.transaction, end, version.operation, version.values)
                    for version, end in zip(chain, [*starts[1:], None], strict=True)
                ]
        return versions

    def _chains(self, table: str, versions: dict[Key, list[Version]], live: Any) -> Iterator[str]:
        """The chain law, from what was found alone."""
        for key, chain in versions.items():
            touching = [a.end == b.transaction for a, b in pairwise(chain)]
            newest = chain[-1]
            if not all(touching) or newest.end is not None:
                yield f"{table}_version {key}: validities do not touch, or not one is open: {chain}"
            if newest.operation == DELETE and key in live:
                yield f"{table}_version {key}: the row lives, its open version is a DELETE"
            if newest.operation != DELETE and live.get(key) != newest.values:
                yield f"{table}_version {key}: open {newest.values}, live {live.get(key)}"
        for key in live:
            if key not in versions:
                yield f"{table} {key} lives and has no version"

    def _attributes(self, kind: Kind) -> dict[str, tuple[str, str]]:
        """Attribute -> (table, column), of the versioned columns of a class."""
        mapper = sa.inspect(self.bench.plain[kind.name])
        found = {}
        for attribute in mapper.column_attrs:
            column = attribute.columns[0]
            table = column.table.name
            if column.name in {one.name for one in self.bench.plain.versioned_columns(table)}:
                found[attribute.key] = (table, column.name)
        return found

    def _family(self, kind: Kind) -> list[Kind]:
        """The kind and the kinds of its subclasses that are loaded with it."""
        cls = self.bench.plain[kind.name]
        mapper = sa.inspect(cls)
        return [
            one
            for one in READ
            if issubclass(self.bench.plain[one.name], cls)
            and (one is kind or not sa.inspect(self.bench.plain[one.name]).concrete)
            and sa.inspect(self.bench.plain[one.name]).base_mapper is mapper.base_mapper
        ]

    def _expected(self, kind: Kind) -> dict[tuple[Key, int], tuple[str, int, Row]]:
        """(key, ordinal) -> (class name, operation, attributes) of the versions of a class."""
        expected = {}
        for member in self._family(kind):
            tables = {
                table: {
                    (key, version.transaction): version
                    for key, chain in self.model.versions(table).items()
                    for version in chain
                }
                for table in {member.table, *(t for t, _ in self._attributes(member).values())}
            }
            attributes = self._attributes(kind)
            for place, version in tables[member.table].items():
                if member.owns(version.values):
                    expected[place] = (
                        member.name,
                        version.operation,
                        {
                            name: tables[table][place].values[column]
                            for name, (table, column) in attributes.items()
                        },
                    )
        return expected

    def _read(self, kind: Kind, versions: Iterable[Any]) -> dict[tuple[Key, int], Any]:
        names = {self._version_class(one): one.name for one in self._family(kind)}
        found: dict[tuple[Key, int], Any] = {}
        for version in versions:
            values = {name: getattr(version, name) for name in self._attributes(kind)}
            key = tuple(getattr(version, name) for name in kind.key)
            place = (key, self.ordinals.get(version.transaction_id, -1))
            if place in found:
                found[place, "again"] = version  # type: ignore[index]
            else:
                found[place] = (
                    names.get(type(version), type(version).__name__),
                    version.operation_type,
                    values,
                )
        return found

    def _version_class(self, kind: Kind) -> Any:
        return self.bench.library.version_class(self._models[kind.name])

    def _classes(self, session: Session, kinds: Iterable[Kind]) -> list[str]:
        """``select(version_class(...))`` gives every version."""
        found = []
        for kind in kinds:
            cls = self._version_class(kind)
            statement = sa.select(cls).options(*self._loads(cls, kind, len(self.ordinals)))
            versions = session.scalars(statement).unique().all()
            found += self._relations(f"select(version_class({kind}))", kind, versions)
            found += _differences(
                f"select(version_class({kind}))", self._expected(kind), self._read(kind, versions)
            )
            found += [
                f"{kind}{key}: the version_parent of a deleted row is {version.version_parent}"
                for version in versions
                for key in [tuple(getattr(version, name) for name in kind.key)]
                if version.operation_type == DELETE
                and key not in self.model.committed[kind.table]
                and version.version_parent is not None
            ]
        return found

    def _live(self, kind: Kind, ordinal: int) -> dict[Key, Row]:
        state = self.model.states[ordinal]
        return {
            key: {
                name: state[table][key][column]
                for name, (table, column) in self._attributes(kind).items()
            }
            for member in self._family(kind)
            for key in member.keys(state)
        }

    def _moments(
        self, session: Session, ordinals: Iterable[int], kinds: Iterable[Kind]
    ) -> list[str]:
        """``as_of`` gives the rows that were live after a transaction, and their relations."""
        found = []
        for ordinal in ordinals:
            for kind in kinds:
                statement = self.bench.library.as_of(
                    self._models[kind.name], self.identity(ordinal)
                ).options(*self._loads(self._version_class(kind), kind, ordinal))
                versions = session.scalars(statement).unique().all()
                found += self._rows(
                    f"as_of({kind}, transaction {ordinal})", kind, ordinal, versions
                )
        return found

    def _past(self, ordinal: int) -> list[str]:
        """In a ``time_machine`` the live classes show what was after a transaction."""
        found = []
        with self.bench.library.time_machine(self.bench.engine, self.identity(ordinal)) as past:
            for kind in READ:
                cls = self._models[kind.name]
                statement = sa.select(cls).options(*self._loads(cls, kind, ordinal))
                objects = past.scalars(statement).unique().all()
                found += self._rows(f"{kind} in the past of {ordinal}", kind, ordinal, objects)
        return found

    def _rows(self, where: str, kind: Kind, ordinal: int, objects: Sequence[Any]) -> list[str]:
        """Objects, live ones or versions, are what was live after a transaction."""
        rows = {
            tuple(getattr(obj, name) for name in kind.key): {
                name: getattr(obj, name) for name in self._attributes(kind)
            }
            for obj in objects
        }
        found = _differences(where, self._live(kind, ordinal), rows)
        if len(rows) != len(objects):
            found.append(f"{where}: a row comes {len(objects)} times")
        return found or self._relations(where, kind, objects, ordinal)

    def _loads(self, cls: Any, kind: Kind, turn: int) -> list[Any]:
        """Loader options for the relations of a class, each time others."""
        load = LOADS[turn % len(LOADS)]
        names = RELATIONS.get(kind.table, ()) if load else ()
        found = [getattr(cls, name, None) for name in names]
        return [load(relation) for relation in found if isinstance(relation, QueryableAttribute)]

    def _relations(
        self, where: str, kind: Kind, objects: Sequence[Any], ordinal: int | None = None
    ) -> list[str]:
        """The relations of objects after a transaction: by default that of the version itself."""
        expected, found = {}, {}
        for name, relation in RELATIONS.get(kind.table, {}).items():
            (key,) = next(one.key for one in READ if one.table == relation.target)
            for obj in objects:
                number = ordinal or self.ordinals[obj.transaction_id]
                place = (getattr(obj, kind.key[0]), number, name)
                related = getattr(obj, name)
                if not isinstance(related, list):
                    related = [related] if related is not None else []
                found[place] = sorted((getattr(one, key),) for one in related)
                row = self._row(kind, obj)
                expected[place] = relation.keys(row, self.model.states[number])
        return _differences(f"relations of {where}", expected, found)

    def _row(self, kind: Kind, obj: Any) -> Row:
        """The base table's row of an object."""
        return {name: getattr(obj, name) for name in kind.key} | {
            column: getattr(obj, name)
            for name, (table, column) in self._attributes(kind).items()
            if table == kind.table
        }

    def _objects(self, session: Session, sample: int) -> list[str]:
        """One live object."""
        kind = self._chosen(READ, sample)
        keys = kind.keys(self.model.committed)
        return self.one_object(session, kind, keys[sample % len(keys)]) if keys else []

    def one_object(self, session: Session, kind: Kind, key: Key) -> list[str]:
        """``versions``, ``previous``, ``next``, ``index``, ``changeset`` ... of a live object."""
        obj = session.get(self._models[kind.name], key)
        expected = sorted(
            (
                (place[1], operation, row)
                for place, (_, operation, row) in self._expected(kind).items()
                if place[0] == key
            ),
            key=lambda version: version[0],
        )
        chain = self.model.versions(kind.table)[key]
        if obj is None or any(not kind.owns(version.values) for version in chain):
            # The key belonged to another class before: its chain is not of one class.
            return [] if obj is not None else [f"{kind}{key} is not there"]
        versions = list(obj.versions)
        found = [
            (
                self.ordinals.get(version.transaction_id, -1),
                version.operation_type,
                {name: getattr(version, name) for name in self._attributes(kind)},
            )
            for version in versions
        ]
        where = f"{kind}{key}"
        if expected != found:
            return [f"{where}.versions: expected {expected}, found {found}"]
        wrong = []
        for place, version in enumerate(versions):
            answers = {
                "previous": (version.previous, versions[place - 1] if place else None),
                "next": (version.next, versions[place + 1] if versions[place + 1 :] else None),
                "index": (version.index, place),
                "changeset": (
                    {name: list(pair) for name, pair in version.changeset.items()},
                    _changeset([one[1:] for one in expected], place),
                ),
                "version_parent": (version.version_parent, obj),
                "transaction": (version.transaction.id, version.transaction_id),
            }
            wrong += [
                f"{where}.versions[{place}].{name}: expected {right!r}, found {got!r}"
                for name, (got, right) in answers.items()
                if got != right
            ]
        if (count := self.bench.library.count_versions(obj)) != len(expected):
            wrong.append(f"count_versions({where}): expected {len(expected)}, found {count}")
        return wrong

    def _entities(self, session: Session, ordinal: int) -> list[str]:
        """``Transaction.changed_entities`` names every object that the transaction changed."""
        transaction = session.get(self.bench.library.transaction_cls, self.identity(ordinal))
        if transaction is None:
            return [f"the transaction {ordinal} cannot be loaded"]
        expected = {
            (kind.table, key)
            for kind in READ
            for key, chain in self.model.versions(kind.table).items()
            for one in chain
            if one.transaction == ordinal
        }
        kinds = {self._version_class(kind): kind for kind in READ}
        found = {
            (kinds[type(one)].table, tuple(getattr(one, name) for name in kinds[type(one)].key))
            for versions in transaction.changed_entities.values()
            for one in versions
        }
        if expected != found:
            return [f"changed_entities of {ordinal}: expected {expected}, found {found}"]
        return []


def _changeset(versions: list[tuple[int, Row]], place: int) -> dict[str, list[Any]]:
    """What differs from the version before; after a DELETE, as at the beginning, from nothing."""
    row = versions[place][1]
    old: Row = {}
    if place and versions[place - 1][0] != DELETE:
        old = versions[place - 1][1]
    return {name: [old.get(name), value] for name, value in row.items() if old.get(name) != value}


def _one_by_one(versions: dict[Key, list[Version]]) -> dict[tuple[Key, int], Version]:
    return {(key, one.transaction): one for key, chain in versions.items() for one in chain}


def _differences(where: str, expected: dict[Any, Any], found: dict[Any, Any]) -> list[str]:
    lines = []
    for place in {**expected, **found}:
        if place not in found:
            lines.append(f"{where} {place}: expected {expected[place]}, found nothing")
        elif place not in expected:
            lines.append(f"{where} {place}: expected nothing, found {found[place]}")
        elif expected[place] != found[place]:
            lines.append(f"{where} {place}: expected {expected[place]}, found {found[place]}")
    return lines
