"""Eight processes write a few hot rows in every way for some seconds; nothing is wrong afterwards."""

from __future__ import annotations

import collections
import json
import multiprocessing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

import sqlalchemy_history as h
from chain import EACH_ONCE, Laws, check_histories
from stress import HOT, SECONDS, declare, write

PROCESSES = 8


@EACH_ONCE
@pytest.mark.sqlite_file
@pytest.mark.filterwarnings("ignore:DELETE statement on table:sqlalchemy.exc.SAWarning")
def test_eight_processes(
    versioning: Any, Base: Any, engine: Engine, open_session: Any, backend: str, strategy: str
) -> None:
    """Every chain holds, every live row is what its open version says, and nothing failed for good."""
    m = declare(Base)
    with open_session() as session:
        session.add_all(m["Tag"](id=n, n=0) for n in range(HOT))
        session.add_all(m["Article"](id=n, n=0, other=0) for n in range(HOT))
        session.add_all(m["Note"](id=n, n=0) for n in range(HOT))
        session.add_all(m["Book"](id=n, n=0, pages=0) for n in range(2))
        session.commit()
    url = engine.url.render_as_string(hide_password=False)
    engine.dispose()
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    level = "SERIALIZABLE" if backend == "sqlite" else "READ COMMITTED"
    processes = [
        spawn.Process(target=write, args=(url, level, strategy, seed, SECONDS, told))
        for seed in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    outcome: collections.Counter[str] = collections.Counter()
    for _ in processes:
        outcome.update(json.loads(told.get(timeout=SECONDS + 100)))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert not [what for what in outcome if what.startswith("failed")], outcome
    assert outcome["commits"] > 2 * PROCESSES, outcome
    with Session(engine) as session:
        found = [
            finding
            for cls in (m["Tag"], m["Article"], m["Item"], m["Note"])
            for finding in h.verify(session, cls)
        ]
        assert not found, "\n".join(finding.message for finding in found)
        check_histories(session.connection(), Base.metadata, Laws(repeats=True))
        made = session.scalar(sa.select(sa.func.count(h.transaction_class(m["Tag"]).id)))
        assert 1 < made <= outcome["commits"] * 3 + 1
