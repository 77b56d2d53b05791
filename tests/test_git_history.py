"""The example `docs/examples/git_history.py`, run as a user runs it, on histories that we make.

The repository is made with `git fast-import`, which needs no working tree: so its paths may differ
in case only, be links or modules, or not be UTF-8, on any file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "git_history.py"

pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not here")

INSERT, UPDATE, DELETE = 0, 1, 2


class Done(NamedTuple):
    """What a commit of ours does to a path, and the version that must come of it."""

    operation: int
    path: bytes
    mode: str
    content: str

    @property
    def blob(self) -> str:
        """The id that git gives this content; a module's content is its id."""
        if self.mode == "160000":
            return self.content
        content = self.content.encode()
        return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()

    @property
    def stored_path(self) -> str:
        return self.path.decode(errors="backslashreplace")


FILE, PROGRAM, LINK, MODULE = "100644", "100755", "120000", "160000"
ODD = "sp ace/ünï çödé 'q\" %s :x [b].txt".encode()
LONG = b"/".join(b"directory-%02d" % number for number in range(30)) + b"/file"
FIRST = [
    Done(INSERT, b"Makefile", FILE, "all:\n"),
    Done(INSERT, b"makefile", FILE, "none:\n"),
    Done(INSERT, b"run.sh", FILE, "echo\n"),
    Done(INSERT, ODD, FILE, "odd"),
    Done(INSERT, LONG, FILE, ""),
    Done(INSERT, b"not-utf8-\xff", FILE, "x"),
]
BRANCH = [
    Done(INSERT, b"branch.txt", FILE, "b"),
    Done(UPDATE, b"run.sh", PROGRAM, "echo branch\n"),
]
COMMITS: list[list[Done]] = [
    FIRST,
    [Done(UPDATE, b"run.sh", PROGRAM, "echo\n"), Done(UPDATE, ODD, FILE, "odder")],
    [Done(DELETE, b"makefile", FILE, "none:\n"), Done(DELETE, b"not-utf8-\xff", FILE, "x")],
    [],
    [Done(INSERT, b"makefile", FILE, "none:\n"), Done(INSERT, b"vendor/lib", MODULE, "5" * 40)],
    BRANCH,  # by a merge
    [Done(DELETE, LONG, FILE, ""), Done(INSERT, LONG[:-5], LINK, "../Makefile")],
    [Done(UPDATE, LONG[:-5], FILE, "no link any more"), Done(DELETE, ODD, FILE, "odder")],
]
MERGE = COMMITS.index(BRANCH) + 1
AUTHORS = ["Zoë Ünal", "zoë ünal", "Bob"]
START = int(datetime(2020, 2, 29, 23, 59, 30, tzinfo=timezone.utc).timestamp())


def author(number: int) -> str:
    return AUTHORS[number % len(AUTHORS)]


def issued_at(number: int) -> datetime:
    return datetime.fromtimestamp(START + 60 * number, timezone.utc).replace(tzinfo=None)


def fast_import_stream() -> Iterator[bytes]:
    """`COMMITS` for git; the merge brings a branch of two commits that started at the third."""

    def commit(ref: str, mark: int, number: int, *parents: int) -> Iterator[bytes]:
        yield f"commit refs/heads/{ref}\nmark :{mark}\n".encode()
        # The committer's zone is not UTC: `issued_at` must be.
        yield f"committer Committer <c@example.org> {START + 60 * number} +0530\n".encode()
        message = f"commit {number}\n"
        yield f"data {len(message)}\n{message}".encode()
        for word, parent in zip(("from", "merge"), parents, strict=False):
            yield f"{word} :{parent}\n".encode()

    def do(done: Done) -> Iterator[bytes]:
        if done.operation == DELETE:
            yield b"D %s\n" % done.path
        elif done.mode == MODULE:
            yield b"M %s %s %s\n" % (done.mode.encode(), done.content.encode(), done.path)
        else:
            content = done.content.encode()
            yield b"M %s inline %s\n" % (done.mode.encode(), done.path)
            yield b"data %d\n%s\n" % (len(content), content)

    def authored(lines: Iterator[bytes], number: int) -> Iterator[bytes]:
        for line in lines:
            if line.startswith(b"committer "):
                yield f"author {author(number)} <a@example.org> {START} +0000\n".encode()
            yield line

    for number, changes in enumerate(COMMITS, 1):
        if number == MERGE:
            for mark, parent, done in ((101, 3, changes[0]), (102, 101, changes[1])):
                yield from authored(commit("branch", mark, mark, parent), mark)
                yield from do(done)
            yield from authored(commit("main", number, number, number - 1, 102), number)
        else:
            parents = (number - 1,) if number > 1 else ()
            yield from authored(commit("main", number, number, *parents), number)
        for done in changes:
            yield from do(done)


def environment() -> dict[str, str]:
    """Ours, less what would lead git elsewhere or to the configuration of who runs the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "PYTHONPATH": str(EXAMPLE.parents[2]),
        "PYTHONUTF8": "1",
    }


def git(directory: Path, *arguments: str, stdin: bytes = b"") -> str:
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, input=stdin, check=True, capture_output=True, env=environment())
    return done.stdout.decode().strip()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the history `COMMITS`."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    directory = tmp_path_factory.mktemp("checkout")
    git(directory, "init", "--quiet")
    git(directory, "symbolic-ref", "HEAD", "refs/heads/main")
    git(directory, "fast-import", "--quiet", stdin=b"".join(fast_import_stream()))
    assert git(directory, "rev-list", "--count", "HEAD") == str(len(COMMITS) + 2)
    # What people put into their configuration must not matter.
    for name, value in (
        ("diff.renames", "copies"),
        ("diff.ignoreSubmodules", "all"),
        ("log.showRoot", "false"),
        ("core.abbrev", "5"),
    ):
        git(directory, "config", name, value)
    return directory


def state_after(number: int) -> dict[str, tuple[str, str]]:
    state: dict[str, tuple[str, str]] = {}
    for done in (done for changes in COMMITS[:number] for done in changes):
        if done.operation == DELETE:
            del state[done.stored_path]
        else:
            state[done.stored_path] = (done.mode, done.blob)
    return state


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """The same history as a `.jsonl` file, with a checkpoint for each commit."""
    letters = {INSERT: "A", UPDATE: "M", DELETE: "D"}
    with (tmp_path / "tiny.jsonl").open("w", encoding="utf-8") as lines:
        for number, changes in enumerate(COMMITS, 1):
            record = {
                "n": number,
                "commit": f"{number:040x}",
                "at": f"{issued_at(number):%Y-%m-%dT%H:%M:%SZ}",
                "author": author(number),
                "changes": [
                    ["D", done.stored_path]
                    if done.operation == DELETE
                    else [letters[done.operation], done.stored_path, done.mode, done.blob]
                    for done in changes
                ],
            }
            lines.write(json.dumps(record) + "\n")
    checkpoints = []
    for number in range(1, len(COMMITS) + 1):
        state = sorted(state_after(number).items())
        text = "\n".join(f"{mode} {blob} {path}" for path, (mode, blob) in state)
        digest = hashlib.sha256(text.encode()).hexdigest()
        checkpoints.append({"n": number, "files": len(state), "sha256": digest})
    (tmp_path / "tiny.checkpoints.json").write_text(json.dumps(checkpoints), encoding="utf-8")
    return tmp_path / "tiny.jsonl"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the example, with warnings as errors, and without a terminal."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env=environment(),
        timeout=100,
    )


def full(url: URL) -> str:
    return url.render_as_string(hide_password=False)


ALL_MATCH = f"{len(COMMITS)} of {len(COMMITS)} match"


def check_success(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert ALL_MATCH in done.stdout
    assert "Replaying" in done.stderr
    # Names that differ in case only are two names, in every database.
    lines = {" ".join(line.rstrip("█ ").split()) for line in done.stdout.splitlines()}
    assert {"3 Bob", "2 Zoë Ünal", "2 zoë ünal", "3 makefile", "1 Makefile"} <= lines


def check_tables(connection: sa.Connection) -> None:
    """One transaction for each of `COMMITS` that changed a file, one version for each change."""
    tables = sa.MetaData()
    tables.reflect(connection)
    commit, version = tables.tables["git_commit"], tables.tables["git_file_version"]

    rows = connection.execute(
        sa.select(commit.c.number, commit.c.author, commit.c.issued_at).order_by(commit.c.id)
    )
    numbers = [number for number, changes in enumerate(COMMITS, 1) if changes]
    assert [tuple(row) for row in rows] == [(n, author(n), issued_at(n)) for n in numbers]

    found: dict[int, set[tuple[Any, ...]]] = {number: set() for number in numbers}
    for number, *values in connection.execute(
        sa.select(
            commit.c.number,
            version.c.operation_type,
            version.c.path,
            version.c.mode,
            version.c.blob,
        ).join_from(version, commit, version.c.transaction_id == commit.c.id)
    ):
        found[number].add(tuple(values))
    for number in numbers:
        assert found[number] == {
            (done.operation, done.stored_path, done.mode, done.blob) for done in COMMITS[number - 1]
        }


@pytest.mark.sqlite_file
def test_each_commit_of_a_checkout_is_a_transaction(
    engine: Engine, strategy: str, checkout: Path
) -> None:
    """Adds, changes of content, mode and type, deletes, re-adds and merges: as git tells them."""
    check_success(run(checkout, "--url", full(engine.url), "--strategy", strategy, "--every", 1))
    with engine.connect() as connection:
        check_tables(connection)


@pytest.mark.sqlite_file
def test_each_line_of_a_file_is_a_transaction(engine: Engine, recording: Path) -> None:
    """A recorded history makes the same transactions and versions as the checkout."""
    check_success(run(recording, "--url", full(engine.url)))
    with engine.connect() as connection:
        check_tables(connection)


@pytest.mark.parametrize("source", ["checkout", "recording"])
def test_an_async_session_makes_the_same_history(
    async_engine: AsyncEngine,
    run_async: Callable[[Any], Any],
    source: str,
    request: pytest.FixtureRequest,
) -> None:
    """The tables are the same, whichever driver wrote them."""
    arguments = ["--every", 1] if source == "checkout" else []
    history = request.getfixturevalue(source)
    check_success(run(history, "--url", full(async_engine.url), "--async", *arguments))

    async def check() -> None:
        async with async_engine.connect() as connection:
            await connection.run_sync(check_tables)

    run_async(check)


def test_the_summary_tells_what_happened(checkout: Path) -> None:
    """Numbers, the files that changed most and the busiest authors, each on a line of its own."""
    done = run(checkout, "--every", 1)
    check_success(done)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "Commits 8, 2020-03-01 to 2020-03-01" in lines
    assert "Transactions 7 (1 commit changed no file)" in lines
    assert "Versions 18: 10 added, 4 changed, 4 deleted" in lines
    assert "Files 6 now, 9 ever, 1 came back after a delete" in lines
    assert lines.index("Changed most") < lines.index("Busiest authors")


def test_only_the_first_commits_are_replayed_when_asked(checkout: Path, recording: Path) -> None:
    """`--limit` counts from the start of history, and leaves later checkpoints out."""
    for arguments in ([checkout, "--every", 2], [recording]):
        done = run(*arguments, "--limit", 3)
        assert done.returncode == 0, done.stderr
        assert "Commits       3," in done.stdout
        assert ("2 of 2 match" if checkout in arguments else "3 of 3 match") in done.stdout


def test_a_state_that_differs_is_an_error(recording: Path) -> None:
    """A checkpoint that does not match is named, and the exit status is 1."""
    file = recording.with_name("tiny.checkpoints.json")
    checkpoints = json.loads(file.read_text(encoding="utf-8"))
    checkpoints[4]["sha256"] = "0" * 64
    checkpoints[6]["files"] += 1
    file.write_text(json.dumps(checkpoints), encoding="utf-8")
    done = run(recording)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{len(COMMITS) - 2} of {len(COMMITS)} match" in done.stdout
    assert "commit 5: expected" in done.stdout
    assert "commit 7: expected" in done.stdout


def test_a_file_without_checkpoints_is_replayed_all_the_same(recording: Path) -> None:
    """The summary says that there was nothing to compare with."""
    recording.with_name("tiny.checkpoints.json").unlink()
    done = run(recording)
    assert done.returncode == 0, done.stderr
    assert "none to compare with" in done.stdout


def test_tables_that_exist_are_dropped_only_when_asked(recording: Path, tmp_path: Path) -> None:
    """Without `--drop` a database with such tables is left as it is."""
    url = f"sqlite:///{tmp_path / 'kept.db'}"
    check_success(run(recording, "--url", url))
    before = (tmp_path / "kept.db").read_bytes()
    done = run(recording, "--url", url)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "git_commit, git_file, git_file_version" in done.stderr
    assert "--drop" in done.stderr
    assert (tmp_path / "kept.db").read_bytes() == before
    check_success(run(recording, "--url", url, "--drop"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a git checkout with at least one commit"),
        (lambda path: path.write_text("{}"), "is neither a git checkout nor a .jsonl"),
    ],
    ids=["missing", "no repository", "another file"],
)
def test_a_history_that_cannot_be_read_is_refused(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    """The message names the path and says what is wrong; the exit status is 2."""
    make(tmp_path / "history")
    done = run(tmp_path / "history")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{tmp_path / 'history'} {message}" in done.stderr
