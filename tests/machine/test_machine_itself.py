"""The machine is tested before it tests: it accepts what is right and finds what is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import support

from .bench import SEARCH, Bench, open_engines, open_models, prove, settings_of
from .bulk import BulkMachine
from .machine import HistoryMachine
from .recorder import FAULTS, Recorder, build_recorded


@dataclass(frozen=True)
class NoLibrary:
    """Only the tables are judged."""

    strategy: str
    transaction_cls: Any = None

    def version_class(self, cls: type) -> Any:
        raise NotImplementedError

    def as_of(self, cls: type, at: int) -> Any:
        raise NotImplementedError

    def count_versions(self, obj: Any) -> int:
        raise NotImplementedError

    def time_machine(self, engine: sa.Engine, at: int) -> Any:
        raise NotImplementedError

    def undo(self, session: Session, transaction: Any, overwrite: bool) -> bool:
        raise NotImplementedError


@contextlib.contextmanager
def recorded(folder: Path, strategy: str, fault: str = "") -> Iterator[Bench]:
    """A bench whose history is written by the naive recorder."""
    with (
        open_engines("sqlite", support.Databases(), folder) as (plain_engine, engine),
        open_models(plain_engine, engine, lambda: build_recorded(strategy)) as (plain, versioned),
    ):
        recorder = Recorder(engine, versioned, strategy, fault)
        with recorder.recording():
            yield Bench(
                library=NoLibrary(strategy),
                reading=False,
                plain_engine=plain_engine,
                engine=engine,
                plain=plain,
                versioned=versioned,
                reset=recorder.reset,
            )


def test_right_history_is_accepted(tmp_path: Path, strategy: str) -> None:
    """A recorder that is right raises no false alarm."""
    with recorded(tmp_path, strategy) as bench:
        prove(BulkMachine, bench, settings_of("sqlite"))


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_history_is_noticed(tmp_path: Path, fault: str) -> None:
    """Each fault of a recorder is found."""
    with recorded(tmp_path, "validity", fault) as bench, pytest.raises(AssertionError):
        prove(HistoryMachine, bench, settings_of("sqlite", SEARCH))
