"""Replay the history of a git repository into versioned tables, then ask for the past.

Every commit becomes one database transaction, with the commit's author and time, that inserts,
updates and deletes plain `File` objects. Afterwards the state as of chosen commits is read back
with `as_of()` and compared with what git itself says: `git ls-tree` for a checkout, recorded
digests for a file.

It needs `rich` (the extra `examples`) beside the library and a driver::

    python docs/examples/git_history.py                      # the checkout that this script lies in
    python docs/examples/git_history.py ~/src/project --every 100
    python docs/examples/git_history.py history.jsonl.gz --url sqlite:///history.db
    python docs/examples/git_history.py --url postgresql+psycopg://localhost/demo --async --drop
    python docs/examples/git_history.py --url mysql+aiomysql://localhost/demo --strategy subquery

A `.jsonl` or `.jsonl.gz` file holds one commit per line::

    {"n": 1, "commit": "40c0f5", "at": "2010-04-22T21:50:15Z", "author": "ada", "changes":
     [["A", "setup.py", "100644", "54ee56"], ["M", "README", "100644", "e69de2"], ["D", "old.py"]]}

and `history.checkpoints.json` next to it says what its state must be after commit `n`:
`[{"n": 1, "files": 2, "sha256": "..."}]`, where the digest is the SHA-256 of the lines
`mode blob path`, sorted by path, joined by newlines.

Exit status: 0 when every checkpoint matches, 1 when one does not, 2 when the replay cannot start.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text
from sqlalchemy import (
    URL,
    Connection,
    String,
    create_engine,
    distinct,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    mapped_column,
)

from sqlalchemy_history import (
    Operation,
    as_of,
    make_versioned,
    transaction_context,
    version_class,
    versioning_manager,
)
from sqlalchemy_history.transaction import TransactionBase

# --- The model: this is all that a program needs for its history to be kept. ---

make_versioned(user_cls=None)


def exact_text(length: int) -> String:
    """Text that is equal only when every character is: git tells `Makefile` from `makefile`."""
    binary = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return String(length).with_variant(binary, "mysql", "mariadb")


class Base(DeclarativeBase):
    pass


class Commit(TransactionBase, Base):
    """Our own transaction class: `id` and `issued_at` come from the mixin, the rest is git's."""

    __tablename__ = "git_commit"

    number: Mapped[int]
    sha: Mapped[str] = mapped_column(String(64))
    author: Mapped[str] = mapped_column(exact_text(200))


versioning_manager.transaction_cls = Commit


class File(Base):
    """A file of the repository. Its path is its key, which a later commit may use again."""

    __tablename__ = "git_file"
    __versioned__: dict[str, Any] = {}

    path: Mapped[str] = mapped_column(exact_text(500), primary_key=True)
    mode: Mapped[str] = mapped_column(String(6))
    blob: Mapped[str] = mapped_column(String(64))


# --- What is replayed. ---


class CannotStartError(Exception):
    """The replay cannot start; the message says why and what to do."""


class Change(NamedTuple):
    """What one commit did to one path: A(dded), M(odified), T(ype changed) or D(eleted)."""

    status: str
    path: str
    mode: str = ""
    blob: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One commit; `number` counts from 1, `at` is naive UTC as `issued_at` is."""

    number: int
    sha: str
    author: str
    at: datetime
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the state after commit `number` must be."""

    number: int
    files: int
    sha256: str


class Entry(NamedTuple):
    mode: str
    blob: str


State = dict[str, Entry]


def digest(state: State) -> str:
    lines = (f"{entry.mode} {entry.blob} {path}" for path, entry in sorted(state.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class History(Protocol):
    """Where commits come from, and who knows what the states must be."""

    name: str
    total: int

    def steps(self) -> Iterator[Step]: ...

    def checkpoints(self) -> Iterator[Checkpoint]: ...


def utc(text: str) -> datetime:
    """Naive UTC of an ISO 8601 time with an offset."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment.astimezone(timezone.utc).replace(tzinfo=None)


class Recording:
    """A history in a `.jsonl` or `.jsonl.gz` file."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.name = path.name
        self._checkpoint_file = path.with_name(
            path.name.removesuffix(".gz").removesuffix(".jsonl") + ".checkpoints.json"
        )
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        self._lines = [line for line in content.split(b"\n") if line.strip()][:limit]
        self.total = len(self._lines)

    def steps(self) -> Iterator[Step]:
        for line in self._lines:
            record = json.loads(line)
            yield Step(
                number=record["n"],
                sha=record["commit"],
                author=record["author"],
                at=utc(record["at"]),
                changes=[Change(*change) for change in record["changes"]],
            )

    def checkpoints(self) -> Iterator[Checkpoint]:
        if not self._checkpoint_file.exists():
            return
        for record in json.loads(self._checkpoint_file.read_text(encoding="utf-8")):
            if record["n"] <= self.total:
                yield Checkpoint(number=record["n"], files=record["files"], sha256=record["sha256"])


class Checkout:
    r"""The history of a git repository: from its first commit to HEAD, along first parents.

    A merge is one commit that does what the merged branch did; a rename is a delete and an add.
    A path that is not UTF-8 has its odd bytes written as `\xff`.
    """

    def __init__(self, path: Path, limit: int | None = None, every: int | None = None) -> None:
        self._path = path
        try:
            shas = self._git("rev-list", "--first-parent", "--reverse", "HEAD", "--")
            place = Path(self._git("rev-parse", "--absolute-git-dir").strip())
        except FileNotFoundError:
            raise CannotStartError("git is not installed, or not on the PATH") from None
        except subprocess.CalledProcessError as error:
            raise CannotStartError(
                f"{path} is not a git checkout with at least one commit; git says: "
                f"{error.stderr.decode(errors='replace').strip()}"
            ) from None
        self.name = place.parent.name if place.name == ".git" else place.name
        self._shas = shas.split()[:limit]
        self.total = len(self._shas)
        self._every = every or max(1, self.total // 40)

    def steps(self) -> Iterator[Step]:
        words = self._log()
        number, step = 0, None
        changes: list[Change] = []
        # "commit SHA", seconds, author, then for each change ":mode mode blob blob status", path
        for word in words:
            if word.startswith("commit "):
                if step:
                    yield step
                number, changes = number + 1, []
                step = Step(
                    number=number,
                    sha=word.removeprefix("commit "),
                    at=datetime.fromtimestamp(int(next(words)), timezone.utc).replace(tzinfo=None),
                    author=next(words)[:200],
                    changes=changes,
                )
            elif word:
                _, mode, _, blob, status = word.lstrip("\n:").split(" ")
                changes.append(Change(status, next(words), mode, blob))
        if step:
            yield step

    def checkpoints(self) -> Iterator[Checkpoint]:
        for number, sha in enumerate(self._shas, 1):
            if number % self._every == 0 or number == self.total:
                state = self._tree(sha)
                yield Checkpoint(number=number, files=len(state), sha256=digest(state))

    def _tree(self, sha: str) -> State:
        state: State = {}
        for line in self._git("ls-tree", "-r", "-z", "--full-tree", sha).split("\0")[:-1]:
            entry, path = line.split("\t", 1)
            mode, _, blob = entry.split(" ")
            state[path] = Entry(mode, blob)
        return state

    def _log(self) -> Iterator[str]:
        """The NUL-separated words of `git log`, read as git writes them.

        What a user's git configuration can change about them is said explicitly.
        """
        command = self._command(
            *("-c", "log.showRoot=true", "-c", "log.showSignature=false"),
            *("log", "--first-parent", "--reverse", "--diff-merges=first-parent"),
            *("--raw", "-z", "--no-abbrev", "--no-renames", "--no-relative"),
            *("--ignore-submodules=none", "--encoding=UTF-8"),
            *("--format=commit %H%x00%ct%x00%an", self._shas[-1], "--"),
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
            assert process.stdout is not None
            rest = b""
            while block := process.stdout.read(1 << 16):
                *words, rest = (rest + block).split(b"\0")
                yield from map(readable, words)
            yield readable(rest)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)

    def _command(self, *arguments: str) -> list[str]:
        return ["git", "-C", str(self._path), *arguments]

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(
            self._command(*arguments), check=True, capture_output=True, env=environment()
        )
        return readable(done.stdout)


def readable(text: bytes) -> str:
    return text.decode(errors="backslashreplace")


def environment() -> dict[str, str]:
    """Ours, less what makes git look at another repository (as in a git hook)."""
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"}
    return {name: value for name, value in os.environ.items() if name not in elsewhere}


def open_history(path: Path, limit: int | None, every: int | None) -> History:
    if not path.exists():
        raise CannotStartError(f"{path} does not exist")
    if path.is_dir():
        return Checkout(path, limit, every)
    if every:
        raise CannotStartError(f"--every is for a checkout; {path.name} brings its own checkpoints")
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise CannotStartError(f"{path} is neither a git checkout nor a .jsonl or .jsonl.gz file")
    return Recording(path, limit)


# --- The replay: ordinary objects, ordinary sessions. ---


def create_tables(connection: Connection, *, drop: bool) -> None:
    configure_mappers()  # so that the version table is in the metadata before we look
    ours = set(Base.metadata.tables) & set(inspect(connection).get_table_names())
    if ours and not drop:
        raise CannotStartError(
            f"the database already has {', '.join(sorted(ours))}; give --drop to drop and make "
            "them anew, or use another database"
        )
    Base.metadata.drop_all(connection)
    Base.metadata.create_all(connection)


class Replay:
    """Applies commits to a session; holds the live files by path."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}

    def apply(self, session: Session, step: Step) -> None:
        """Make one commit one database transaction."""
        context = transaction_context(
            issued_at=step.at, number=step.number, sha=step.sha, author=step.author
        )
        with context, session.begin():
            for change in step.changes:
                self._apply_change(session, change)

    def _apply_change(self, session: Session, change: Change) -> None:
        if change.status == "D":
            session.delete(self._files.pop(change.path))
        elif change.status not in ("A", "M", "T"):
            raise ValueError(f"unknown status {change.status!r} of {change.path!r}")
        elif file := self._files.get(change.path):
            file.mode, file.blob = change.mode, change.blob
        else:
            file = File(path=change.path, mode=change.mode, blob=change.blob)
            session.add(file)
            self._files[file.path] = file


# --- The questions. ---


def state_as_of(session: Session, number: int) -> State:
    """The files as they were after commit `number`.

    A commit that changed no file left no transaction, so the last one before it has its state.
    """
    commit = session.scalars(
        select(Commit).where(Commit.number <= number).order_by(Commit.number.desc()).limit(1)
    ).first()
    if commit is None:
        return {}
    versions = session.scalars(as_of(File, commit))
    return {version.path: Entry(version.mode, version.blob) for version in versions}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    checkpoint: Checkpoint
    found: State

    @property
    def matches(self) -> bool:
        expected = (self.checkpoint.files, self.checkpoint.sha256)
        return expected == (len(self.found), digest(self.found))


def compare(session: Session, checkpoint: Checkpoint) -> Comparison:
    return Comparison(checkpoint=checkpoint, found=state_as_of(session, checkpoint.number))


Count = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    transactions: int
    first: datetime | None
    last: datetime | None
    versions: dict[int, int]  # by operation type
    paths: int
    returned: int
    live: int
    changed_most: list[Count]
    busiest: list[Count]


def collect_statistics(session: Session, top: int = 8) -> Statistics:
    """History is made of tables and classes: counting in it is plain SQLAlchemy."""
    version = version_class(File)
    transactions, first, last = session.execute(
        select(func.count(Commit.id), func.min(Commit.issued_at), func.max(Commit.issued_at))
    ).one()
    by_operation = session.execute(
        select(version.operation_type, func.count()).group_by(version.operation_type)
    )
    returned = (
        select(version.path)
        .where(version.operation_type == Operation.INSERT)
        .group_by(version.path)
        .having(func.count() > 1)
    )
    changed_most = (
        select(version.path, func.count())
        .group_by(version.path)
        .order_by(func.count().desc(), version.path)
        .limit(top)
    )
    busiest = (
        select(Commit.author, func.count())
        .group_by(Commit.author)
        .order_by(func.count().desc(), Commit.author)
        .limit(top)
    )
    return Statistics(
        transactions=transactions,
        first=first,
        last=last,
        versions={row[0]: row[1] for row in by_operation},
        paths=session.scalars(select(func.count(distinct(version.path)))).one(),
        returned=session.scalars(select(func.count()).select_from(returned.subquery())).one(),
        live=session.scalars(select(func.count()).select_from(File)).one(),
        changed_most=[(path, count) for path, count in session.execute(changed_most)],
        busiest=[(author, count) for author, count in session.execute(busiest)],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    replaying: float
    comparing: float
    statistics: Statistics
    comparisons: list[Comparison]


# --- Sync and async: the same functions, called or run. ---


def follow(history: History) -> Iterator[Step]:
    """The commits of `history`, while a progress bar on stderr follows them."""
    console = Console(stderr=True)
    yield from track(history.steps(), "Replaying", total=history.total, console=console)


def replay(url: URL, history: History, *, drop: bool) -> Outcome:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            create_tables(connection, drop=drop)
        with Session(engine, expire_on_commit=False) as session:
            start = time.perf_counter()
            files = Replay()
            for step in follow(history):
                files.apply(session, step)
            replayed = time.perf_counter()
            comparisons = [compare(session, each) for each in history.checkpoints()]
            compared = time.perf_counter()
            return Outcome(
                replaying=replayed - start,
                comparing=compared - replayed,
                statistics=collect_statistics(session),
                comparisons=comparisons,
            )
    finally:
        engine.dispose()


async def replay_async(url: URL, history: History, *, drop: bool) -> Outcome:
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(create_tables, drop=drop)
        async with AsyncSession(engine, expire_on_commit=False) as session:
            start = time.perf_counter()
            files = Replay()
            for step in follow(history):
                await session.run_sync(files.apply, step)
            replayed = time.perf_counter()
            comparisons = [await session.run_sync(compare, each) for each in history.checkpoints()]
            compared = time.perf_counter()
            return Outcome(
                replaying=replayed - start,
                comparing=compared - replayed,
                statistics=await session.run_sync(collect_statistics),
                comparisons=comparisons,
            )
    finally:
        await engine.dispose()


# --- The summary. ---


def ranking(title: str, unit: str, counts: list[Count]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column(unit, justify="right", style="cyan")
    table.add_column(overflow="fold")
    longest = max((count for _, count in counts), default=1)
    table.add_column()
    for name, count in counts:
        bar = "█" * max(1, round(20 * count / longest))
        table.add_row(f"{count:,}", Text(name), Text(bar, style="green"))
    return table


def many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def render(title: str, history: History, outcome: Outcome) -> Group:
    statistics, seconds = outcome.statistics, max(outcome.replaying, 1e-9)
    versions = sum(statistics.versions.values())
    added, changed, deleted = (
        statistics.versions.get(operation, 0)
        for operation in (Operation.INSERT, Operation.UPDATE, Operation.DELETE)
    )

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    span = ""
    if statistics.first and statistics.last:
        span = f", {statistics.first:%Y-%m-%d} to {statistics.last:%Y-%m-%d}"
    facts.add_row("Commits", f"{history.total:,}{span}")
    idle = history.total - statistics.transactions
    facts.add_row(
        "Transactions",
        f"{statistics.transactions:,}"
        + (f" ({many(idle, 'commit')} changed no file)" if idle else ""),
    )
    facts.add_row(
        "Versions", f"{versions:,}: {added:,} added, {changed:,} changed, {deleted:,} deleted"
    )
    facts.add_row(
        "Files",
        f"{statistics.live:,} now, {statistics.paths:,} ever, "
        f"{statistics.returned:,} came back after a delete",
    )
    facts.add_row(
        "Time",
        f"{outcome.replaying:.1f} s: {history.total / seconds:,.0f} commits/s, "
        f"{versions / seconds:,.0f} versions/s",
    )
    failed = [each for each in outcome.comparisons if not each.matches]
    if outcome.comparisons:
        matched = f"{len(outcome.comparisons) - len(failed)} of {len(outcome.comparisons)} match"
        style = "bold red" if failed else "bold green"
        facts.add_row("Checkpoints", Text(f"{matched} ({outcome.comparing:.1f} s)", style=style))
    else:
        facts.add_row("Checkpoints", Text("none to compare with", style="yellow"))

    parts: list[Any] = [Text(title, style="bold magenta"), "", facts]
    for each in failed:
        expected = each.checkpoint
        parts.append(
            Text(
                f"  commit {expected.number:,}: expected {many(expected.files, 'file')}, "
                f"{expected.sha256[:12]}; found {many(len(each.found), 'file')}, "
                f"{digest(each.found)[:12]}",
                style="red",
            )
        )
    parts += ["", ranking("Changed most", "versions", statistics.changed_most)]
    parts += ["", ranking("Busiest authors", "commits", statistics.busiest)]
    return Group(*parts)


# --- The command. ---


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "history",
        nargs="?",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="a git checkout (default: the one this script lies in) or a .jsonl(.gz) file",
    )
    parser.add_argument(
        "--url", type=make_url, default="sqlite://", help="database (default: in memory)"
    )
    parser.add_argument(
        "--async",
        dest="asynchronous",
        action="store_true",
        help="use an AsyncSession (always so for a driver that is only async)",
    )
    parser.add_argument("--strategy", choices=("validity", "subquery"), default="validity")
    parser.add_argument(
        "--every", type=positive, metavar="N", help="compare every N commits of a checkout"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N commits")
    parser.add_argument(
        "--drop", action="store_true", help="drop the tables if the database has them"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    versioning_manager.options = {"strategy": options.strategy}
    url: URL = options.url
    asynchronous = options.asynchronous or url.get_dialect().is_async
    try:
        history = open_history(options.history, options.limit, options.every)
        if asynchronous:
            outcome = asyncio.run(replay_async(url, history, drop=options.drop))
        else:
            outcome = replay(url, history, drop=options.drop)
    except CannotStartError as refusal:
        print(f"git_history: {refusal}", file=sys.stderr)
        return 2
    how = f"{options.strategy}, {'async' if asynchronous else 'sync'}"
    Console().print(render(f"{history.name} in {url} ({how})", history, outcome), highlight=False)
    return 0 if all(each.matches for each in outcome.comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
