"""The command line shows histories to people and machines, and does nothing rash."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, mapped_column
from typer.testing import CliRunner, Result

import sqlalchemy_history as h
from chain import history
from sqlalchemy_history.ext.cli import cli

pytestmark = [pytest.mark.sqlite_file, pytest.mark.backends("sqlite")]


@pytest.fixture
def strategy() -> str:
    """The functions below the command line are tested with both."""
    return "validity"


@pytest.fixture
def models(versioning: Any, Base: Any, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(50))
        rank = mapped_column(sa.Integer)

    class Price(Base):
        __tablename__ = "price"
        __versioned__ = {}
        country = mapped_column(sa.String(2), primary_key=True)
        size = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        amount = mapped_column(sa.Integer)

    found = SimpleNamespace(Base=Base, Article=Article, Price=Price)
    monkeypatch.setitem(sys.modules, "shop", found)
    return found


@pytest.fixture
def session(models: SimpleNamespace, open_session: Callable[..., Session]) -> Session:
    """An article and a price with three versions each, the second article without history."""
    session = open_session()
    article = models.Article(id=1, name="a", rank=1)
    price = models.Price(country="de", size=1, amount=1)
    with h.transaction_context(remote_addr="10.0.0.7"):
        session.add_all([article, price])
        session.commit()
    for number in (2, 3):
        article.name = price.amount = number
        session.commit()
    session.delete(article)
    session.commit()
    return session


@pytest.fixture
def run(session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command on the database of `session`; it has to end with `code`."""
    session.commit()
    url = session.get_bind().engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("SQLALCHEMY_HISTORY_APP", "shop:Base")
    monkeypatch.setenv("SQLALCHEMY_HISTORY_URL", url)
    monkeypatch.setenv("COLUMNS", "140")

    def run_one(*arguments: str, code: int = 0) -> Result:
        session.rollback()
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == code, result.output
        return result

    return run_one


def behind(session: Session, statement: Any) -> None:
    """Change something behind the back of versioning."""
    session.rollback()
    with session.get_bind().begin() as connection:
        connection.execute(statement)


def test_log_shows_who_changed_what_and_when(run: Callable[..., Result]) -> None:
    """One row for each version, the changes in words; as JSON the same, for machines."""
    shown = run("log", "Article", "1").output
    for text in ("10.0.0.7", "INSERT", "UPDATE", "DELETE", "name: 'a' -> '2'", "(UTC)"):
        assert text in shown
    rows = json.loads(run("log", "Article", "1", "--json").output)
    assert [row["operation"] for row in rows] == ["INSERT", "UPDATE", "UPDATE", "DELETE"]
    assert rows[0]["remote_addr"] == "10.0.0.7"
    assert rows[1]["changes"] == {"name": ["a", "2"]}


def test_values_are_shown_as_people_write_them(
    models: SimpleNamespace, Base: Any, run: Callable[..., Result], open_session: Any
) -> None:
    """Dates, numbers, enums and bytes without Python around them; of a long text, what differs."""

    class Color(enum.Enum):
        red = 1

    class Day(Base):
        __tablename__ = "day"
        __versioned__ = {}
        date = mapped_column(sa.Date, primary_key=True)
        color = mapped_column(sa.Enum(Color))
        price = mapped_column(sa.Numeric(6, 2))
        blob = mapped_column(sa.LargeBinary)
        text = mapped_column(sa.Text)

    session = open_session()
    lines = [f"line {n}" for n in range(9)]
    day = Day(date=dt.date(2024, 1, 2), color=Color.red, price=decimal.Decimal("9.90"), blob=b"xy")
    day.text = "\n".join(lines)
    session.add(day)
    session.commit()
    day.text = "\n".join([*lines[:4], "other", *lines[5:]])
    session.commit()
    shown = run("log", "Day", "2024-01-02").output
    for text in ("date: 2024-01-02 ", "color: red ", "price: 9.90 ", "blob: <2 bytes>"):
        assert text in shown
    first = str(day.versions[0].transaction_id)
    lines = run("diff", "Day", "2024-01-02", first).output.splitlines()
    assert [line.strip() for line in lines[-4:]] == ["line 3", "-line 4", "+other", "line 5"]
    [row, _] = json.loads(run("log", "Day", "2024-01-02", "--json").output)
    assert row["changes"]["color"] == [None, "red"]
    assert row["changes"]["blob"] == [None, "7879"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["log", "Article", "x"], "'x' is no int"),
        (["log", "Price", "de"], "(country, size)"),
        (["prune", "--keep-last", "0"], "--keep-last"),
        (["stats", "--url", "sqlite:////no/such/file"], "unable to open database file"),
        (["stats", "--url", "nonsense"], "Could not parse"),
        (["stats", "--url", "sqlite+aiosqlite://"], "synchronous driver"),
        (["stats", "--app", "no_such_module"], "no_such_module"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    run: Callable[..., Result], arguments: list[str], message: str
) -> None:
    """What was typed wrong is said in a line, with exit code 2."""
    assert message in run(*arguments, code=2).output


def test_a_class_without_version_class_is_left_out(
    Base: Any, run: Callable[..., Result], session: Session
) -> None:
    """With create_models=False there is nothing to read and nothing to keep up."""

    class Raw(Base):
        __tablename__ = "raw"
        __versioned__ = {"create_models": False}
        id = mapped_column(sa.Integer, primary_key=True)

    tables = {row["table"] for row in json.loads(run("stats", "--json").output)}
    assert tables == {"article", "price"}
    assert "there are: Article, Price" in run("stats", "Raw", code=2).output


def test_diff_compares_two_moments(run: Callable[..., Result]) -> None:
    """Of a composite key, between two transactions, or one and the last version."""
    assert json.loads(run("diff", "Price", "de,1", "1", "2", "--json").output) == {"amount": [1, 2]}
    assert "amount: 1 -> 3" in run("diff", "Price", "de,1", "1").output
    assert "no difference" in run("diff", "Price", "de,1", "3", "3").output


def test_stats_and_verify_tell_the_state(
    run: Callable[..., Result], session: Session, models: SimpleNamespace
) -> None:
    """Numbers for each table; findings, and an exit code that says that there are errors."""
    by_table = {row["table"]: row for row in json.loads(run("stats", "--json").output)}
    assert by_table["article"]["versions"] == 4
    assert by_table["price"]["hottest"] == [[["de", 1], 3]]
    assert "price" in run("stats").output
    assert "nothing is wrong" in run("verify").output
    behind(session, sa.update(models.Price.__table__).values(amount=7))
    assert "differs from live row" in run("verify", code=1).output
    [finding] = json.loads(run("verify", "Price", "--json", code=1).output)
    assert (finding["kind"], finding["key"]) == ("differs from live row", ["de", 1])


@pytest.mark.parametrize(
    ("command", "count"),
    [
        (["backfill"], 1),
        (["prune", "Article", "--keep-last", "1"], 3),
        (["prune", "Article", "--before", "3"], 2),
        (["prune", "Article", "--before", "2999-01-01"], 4),
        (["vacuum"], 1),
    ],
)
def test_upkeep_is_only_tried_without_yes(
    run: Callable[..., Result],
    session: Session,
    models: SimpleNamespace,
    command: list[str],
    count: int,
) -> None:
    """It is told how much would be done, and nothing is changed; with --yes it is done."""
    behind(session, sa.insert(models.Article.__table__).values(id=2))
    v = h.version_table(models.Price.__table__)
    behind(session, sa.update(v).where(v.c.transaction_id == 2).values(amount=1))
    before = history(session, models.Article), history(session, models.Price)
    shown = run(*command).output
    assert f" {count} versions" in shown
    assert "Nothing was changed" in shown
    assert (history(session, models.Article), history(session, models.Price)) == before
    result = json.loads(run(*command, "--yes", "--json").output)
    assert result["done"]
    assert sum(result["counts"].values()) == count
    session.rollback()
    assert (history(session, models.Article), history(session, models.Price)) != before


def test_redact_and_repair_need_yes_too(
    run: Callable[..., Result], session: Session, models: SimpleNamespace
) -> None:
    """A plan first; what is erased or mended is what was told."""
    assert "4 versions" in run("redact", "Article", "1", "--column", "name").output
    assert "a" in {row[3] for row in history(session, models.Article)}
    run("redact", "Article", "1", "--column", "name=gone", "--column", "rank", "--yes")
    session.rollback()
    assert {row[3:] for row in history(session, models.Article)} == {("gone", None)}
    behind(session, sa.update(models.Price.__table__).values(amount=7))
    shown = run("repair", "Price").output
    assert "write an UPDATE version of the live row" in shown
    assert "Nothing was changed" in shown
    run("repair", "Price", "--yes")
    assert "nothing to mend" in run("repair", "Price").output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["log", "Artcle", "1"], "there are: Article, Price"),
        (["log", "Article", "99"], "no ArticleVersion of 99"),
        (["log", "Price", "de"], "(country, size)"),
        (["prune", "Article"], "--before, --keep-last, or both"),
        (["prune", "Article", "--before", "yesterday"], "yesterday"),
        (["redact", "Article", "1", "--column", "nmae"], "did you mean 'name'"),
        (["stats", "--app", "no.such:Base"], "no.such"),
    ],
)
def test_mistakes_are_told_in_words(
    run: Callable[..., Result], command: list[str], message: str
) -> None:
    """A wrong name or value ends with advice and exit code 2, without a traceback."""
    output = " ".join(run(*command, code=2).output.replace("│", " ").split())
    assert message in output
    assert "Traceback" not in output


def test_the_entry_point_lists_the_commands() -> None:
    """The command line starts, and says what there is."""
    code = "from sqlalchemy_history.ext.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True
    )
    for command in (
        "log",
        "diff",
        "backfill",
        "vacuum",
        "prune",
        "redact",
        "verify",
        "repair",
        "stats",
    ):
        assert command in done.stdout
