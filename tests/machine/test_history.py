"""The history that the library keeps is the one that an independent model expects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import sqlalchemy_history
import support
from sqlalchemy_history import RevertConflict

from .bench import SEARCH, Bench, open_engines, open_models, profile_name, prove, settings_of
from .bulk import BulkMachine
from .machine import HistoryMachine
from .outside import OutsideMachine
from .schema import KINDS, TRIGGERED, Models, build_models

#: each has all rules of the one before; and what is recorded by triggers
MACHINES: list[Any] = [
    pytest.param(HistoryMachine, (), id="flushes"),
    pytest.param(BulkMachine, (), id="sessions"),
    pytest.param(OutsideMachine, TRIGGERED, id="both"),
    pytest.param(OutsideMachine, [kind.name for kind in KINDS] + ["Comment"], id="triggers"),
]
if profile_name() == "ci":
    MACHINES = MACHINES[1:3]


class OurLibrary:
    """``sqlalchemy_history``, as the judge asks for it."""

    def __init__(self, strategy: str, native: Collection[str]) -> None:
        self.strategy = strategy
        self.native = native
        self.transaction_cls: Any = None

    def version_class(self, cls: type) -> Any:
        return sqlalchemy_history.version_class(cls)

    def as_of(self, cls: type, at: int) -> Any:
        return sqlalchemy_history.as_of(cls, at)

    def count_versions(self, obj: Any) -> int:
        return sqlalchemy_history.count_versions(obj)

    def time_machine(self, engine: sa.Engine, at: int) -> Any:
        return sqlalchemy_history.time_machine(engine, at)

    def undo(self, session: Session, transaction: Any, overwrite: bool) -> bool:
        try:
            sqlalchemy_history.revert_transaction(session, transaction, overwrite=overwrite)
        except RevertConflict:
            return False
        return True

    @contextlib.contextmanager
    def versioning(self) -> Iterator[None]:
        """From ``make_versioned()`` to where nothing is left of it."""
        manager = sqlalchemy_history.versioning_manager
        sqlalchemy_history.make_versioned(user_cls=None, options={"strategy": self.strategy})
        try:
            yield
        finally:
            sqlalchemy_history.remove_versioning()
            manager.reset()

    def build(self) -> Models:
        """The versioned classes."""
        models = build_models(versioned=True, native=self.native)
        self.transaction_cls = sqlalchemy_history.versioning_manager.transaction_cls
        return models


@contextlib.contextmanager
def versioned(
    backend: str,
    strategy: str,
    databases: support.Databases,
    folder: Path,
    native: Collection[str] = (),
) -> Iterator[Bench]:
    """A bench whose history is written by the library, that of the classes ``native`` by triggers."""
    library = OurLibrary(strategy, native)
    with (
        open_engines(backend, databases, folder) as (plain_engine, engine),
        library.versioning(),
        open_models(plain_engine, engine, library.build) as (plain, models),
    ):
        yield Bench(
            library=library,
            plain_engine=plain_engine,
            engine=engine,
            plain=plain,
            versioned=models,
        )


@pytest.mark.timeout(300 if profile_name() == "ci" else 0)
@pytest.mark.parametrize(("machine", "native"), MACHINES)
def test_history_is_what_the_model_expects(
    backend: str,
    strategy: str,
    machine: type[HistoryMachine],
    native: Collection[str],
    databases: support.Databases,
    tmp_path: Path,
) -> None:
    """Whatever is done, in whatever order: history, chain law and past states are the model's."""
    with versioned(backend, strategy, databases, tmp_path, native) as bench:
        prove(machine, bench, settings_of(backend, half=bool(native)))


def _as_of_forgets_updates(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    as_of = bench.library.as_of
    patch.setattr(
        bench.library,
        "as_of",
        lambda cls, at: as_of(cls, at).where(
            sqlalchemy_history.version_class(cls).operation_type != 1
        ),
    )


def _as_of_is_too_late(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    as_of = bench.library.as_of
    patch.setattr(bench.library, "as_of", lambda cls, at: as_of(cls, at + 1))


def _count_is_of_all(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    def count(obj: Any) -> int:
        version = sqlalchemy_history.version_class(type(obj))
        session = sa.orm.object_session(obj)
        assert session is not None
        return session.scalar(sa.select(sa.func.count()).select_from(version)) or 0

    patch.setattr(bench.library, "count_versions", count)


def _answers(name: str, value: Any) -> Callable[[pytest.MonkeyPatch, Bench], None]:
    """All versions give the same answer."""

    def spoil(patch: pytest.MonkeyPatch, bench: Bench) -> None:
        for cls in bench.versioned.classes.values():
            version = sqlalchemy_history.version_class(cls)
            patch.setattr(version, name, property(lambda _: value), raising=False)

    return spoil


def _no_entities(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    patch.setattr(bench.library.transaction_cls, "changed_entities", {})


def _relation_is(name: str, value: Any) -> Callable[[pytest.MonkeyPatch, Bench], None]:
    """A relationship of article versions gives the same answer always."""

    def spoil(patch: pytest.MonkeyPatch, bench: Bench) -> None:
        version = sqlalchemy_history.version_class(bench.versioned["Article"])
        patch.setattr(version, name, property(lambda _: value))

    return spoil


def _the_past_is_the_present(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    patch.setattr(bench.library, "time_machine", lambda engine, at: Session(engine))


def _undo_does_nothing(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    patch.setattr(bench.library, "undo", lambda *arguments: True)


def _undo_sees_no_conflict(patch: pytest.MonkeyPatch, bench: Bench) -> None:
    undo = bench.library.undo
    patch.setattr(bench.library, "undo", lambda session, tx, overwrite: undo(session, tx, True))


WRONG_ANSWERS: dict[str, Callable[[pytest.MonkeyPatch, Bench], None]] = {
    "as_of forgets updates": _as_of_forgets_updates,
    "as_of is too late": _as_of_is_too_late,
    "no entities": _no_entities,
    "count is of all": _count_is_of_all,
    "no previous": _answers("previous", None),
    "no next": _answers("next", None),
    "index is 0": _answers("index", 0),
    "no changeset": _answers("changeset", {}),
    "no parent": _answers("version_parent", None),
    "no tags": _relation_is("tags", []),
    "no targets": _relation_is("targets", []),
    "no comments": _relation_is("comments", []),
    "no category": _relation_is("category", None),
    "the past is the present": _the_past_is_the_present,
    "undo does nothing": _undo_does_nothing,
    "undo sees no conflict": _undo_sees_no_conflict,
}


@pytest.mark.parametrize("fault", WRONG_ANSWERS)
def test_wrong_answers_are_noticed(
    fault: str, databases: support.Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge asks: each wrong answer of the library is found."""
    with versioned("sqlite", "validity", databases, tmp_path) as bench:
        WRONG_ANSWERS[fault](monkeypatch, bench)
        with pytest.raises(AssertionError):
            prove(HistoryMachine, bench, settings_of("sqlite", SEARCH))
        monkeypatch.undo()


def test_a_missing_trigger_is_noticed(databases: support.Databases, tmp_path: Path) -> None:
    """The judge looks at what triggers record."""
    with versioned("sqlite", "validity", databases, tmp_path, TRIGGERED) as bench:
        with bench.engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER history_delete_note")
        with pytest.raises(AssertionError):
            prove(OutsideMachine, bench, settings_of("sqlite", SEARCH))


def test_version_tables_have_the_columns_that_are_versioned(
    backend: str, strategy: str, databases: support.Databases, tmp_path: Path
) -> None:
    """``create_all()`` makes a version table for each table: its versioned columns and our own."""
    own = {"transaction_id", "operation_type"}
    if strategy == "validity":
        own.add("end_transaction_id")
    with versioned(backend, strategy, databases, tmp_path) as bench:
        inspector = sa.inspect(bench.engine)
        for table in bench.plain.live:
            found = {column["name"] for column in inspector.get_columns(f"{table}_version")}
            expected = {column.name for column in bench.plain.versioned_columns(table)}
            assert found == expected | own, table
