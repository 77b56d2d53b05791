"""The command line ``sqlalchemy-history``: histories read and kept up from a terminal.

::

    sqlalchemy-history log Article 5 --app shop.models:Base --url postgresql+psycopg:///shop
    sqlalchemy-history prune Article --before 2024-01-01 --app shop.models:Base --url ...

``--app`` and ``--url`` may be given as SQLALCHEMY_HISTORY_APP and SQLALCHEMY_HISTORY_URL instead.
What removes or rewrites something is only tried, rolled back and told, unless there is ``--yes``.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import difflib
import enum
import importlib
import json as json_format
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

try:
    import typer
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise ImportError(
        "the command line needs typer and rich: pip install 'sqlalchemy-history-next[cli]'"
    ) from error

from sqlalchemy_history import history, inspection, maintenance, query
from sqlalchemy_history.changeset import Changeset
from sqlalchemy_history.exc import VersioningError
from sqlalchemy_history.plan import all_registries, class_plan

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

App = Annotated[
    str,
    typer.Option("--app", envvar="SQLALCHEMY_HISTORY_APP", help="module:Base of your models"),
]
Url = Annotated[
    str,
    typer.Option("--url", envvar="SQLALCHEMY_HISTORY_URL", help="URL of the database, synchronous"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]
Yes = Annotated[bool, typer.Option("--yes", help="do it; without, it is tried and rolled back")]
Batch = Annotated[int, typer.Option(min=1, help="rows in one statement and one commit")]
Model = Annotated[str, typer.Argument(help="name of a versioned class")]
Models = Annotated[
    list[str] | None, typer.Argument(help="versioned classes; all, if none is given")
]
Ident = Annotated[str, typer.Argument(help="primary key; the values of a composite one as a,b")]

_OPERATIONS = {0: ("INSERT", "green"), 1: ("UPDATE", "yellow"), 2: ("DELETE", "red")}
_SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "dim"}


class _Project:
    """The models that ``--app`` names, and a session on the database."""

    def __init__(self, app: str, session: Session) -> None:
        module_name, _, attribute = app.partition(":")
        sys.path.insert(0, "")
        try:
            found = getattr(importlib.import_module(module_name), attribute or "Base")
        except (ImportError, AttributeError) as error:
            raise typer.BadParameter(f"--app {app}: {error}") from error
        metadata = getattr(found, "metadata", found)
        self.session = session
        self.classes: dict[str, type[Any]] = {}
        for reg in all_registries():
            if reg.metadata is metadata:
                reg.configure()
                for mapper in sorted(reg.mappers, key=_base_first):
                    if inspection.is_versioned(mapper.class_):
                        self.classes[mapper.class_.__name__] = mapper.class_
        if not self.classes:
            raise typer.BadParameter(f"--app {app}: there is no versioned class in it")

    def model(self, name: str) -> type[Any]:
        if name not in self.classes:
            raise typer.BadParameter(
                f"no versioned class {name!r}; there are: {', '.join(self.classes)}"
            )
        return self.classes[name]

    def models(self, names: list[str] | None) -> list[type[Any]]:
        """The classes of these names, or the base classes of all hierarchies."""
        if names:
            return [self.model(name) for name in names]
        roots: dict[Any, type[Any]] = {}
        for cls in self.classes.values():
            plan = class_plan(cls)
            assert plan is not None
            roots.setdefault(plan.root, cls)
        return list(roots.values())

    def key(self, model: type[Any], ident: str) -> tuple[Any, ...]:
        """A primary key from the command line, with the types of its columns."""
        columns = sa.inspect(model).primary_key
        parts = ident.split(",") if len(columns) > 1 else [ident]
        if len(parts) != len(columns):
            names = ", ".join(column.name for column in columns)
            raise typer.BadParameter(
                f"the primary key of {model.__name__} is ({names}), not {ident!r}"
            )
        return tuple(map(_parsed, columns, parts))


def _parsed(column: sa.Column[Any], text: str) -> Any:
    """A value from the command line, with the type of its column."""
    kind: Any = column.type.python_type
    try:
        if issubclass(kind, (dt.date, dt.time)):
            return kind.fromisoformat(text)
        if issubclass(kind, enum.Enum):
            return kind[text]
        return kind(text)
    except (ValueError, KeyError, ArithmeticError) as error:
        raise typer.BadParameter(f"{text!r} is no {kind.__name__}, as {column.name} is") from error


def _base_first(mapper: Any) -> tuple[int, str]:
    return len(list(mapper.iterate_to_root())), mapper.class_.__name__


@contextmanager
def _opened(app: str, url: str) -> Iterator[_Project]:
    try:
        engine = sa.create_engine(url)
        if engine.dialect.is_async:
            raise typer.BadParameter(
                f"--url {engine.url.drivername}: give a synchronous driver, such as sqlite, "
                f"postgresql+psycopg or mysql+pymysql"
            )
        try:
            with Session(engine) as session:
                yield _Project(app, session)
        finally:
            engine.dispose()
    except (VersioningError, SQLAlchemyError) as error:
        raise typer.BadParameter(str(getattr(error, "orig", None) or error)) from error


def _console() -> Console:
    return Console(highlight=False)


def _plain(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, (str, list, dict)):
        return repr(value)
    return str(value)


def _print_json(data: Any) -> None:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, bytes):
            return value.hex()
        return _plain(value)

    typer.echo(json_format.dumps(data, default=plain, indent=2))


# -- reading


@cli.command()
def log(
    model: Model,
    ident: Ident,
    app: App,
    url: Url,
    json: Json = False,
) -> None:
    """The versions of one object: when, by whom, what changed."""
    with _opened(app, url) as project:
        cls = project.model(model)
        entries = _timeline(project, cls, project.key(cls, ident))
        rows = [
            {
                "transaction": entry.transaction.id if entry.transaction else None,
                "issued_at": entry.transaction and entry.transaction.issued_at,
                "user_id": getattr(entry.transaction, "user_id", None),
                "remote_addr": getattr(entry.transaction, "remote_addr", None),
                "operation": _OPERATIONS[entry.operation_type][0],
                "changes": entry.changeset,
            }
            for entry in entries
        ]
        if json:
            _print_json(rows)
            return
        table = Table("transaction", "when (UTC)", "who", "", "changes", title=f"{model} {ident}")
        for entry, row in zip(entries, rows, strict=True):
            name, style = _OPERATIONS[entry.operation_type]
            when = "" if row["issued_at"] is None else f"{row['issued_at']:%Y-%m-%d %H:%M:%S}"
            user = None if row["user_id"] is None else f"user {row['user_id']}"
            who = ", ".join(part for part in (user, row["remote_addr"]) if part)
            table.add_row(
                str(row["transaction"]), when, who, Text(name, style), _changes(entry.changeset)
            )
        _console().print(table)


@cli.command()
def diff(
    model: Model,
    ident: Ident,
    older: Annotated[int, typer.Argument(help="a transaction's id")],
    newer: Annotated[int | None, typer.Argument(help="another; the last version, if none")] = None,
    *,
    app: App,
    url: Url,
    json: Json = False,
) -> None:
    """What differs between two moments of one object."""
    with _opened(app, url) as project:
        cls = project.model(model)
        versions = [entry.version for entry in _timeline(project, cls, project.key(cls, ident))]
        found = [
            _at(cls, versions, older),
            versions[-1] if newer is None else _at(cls, versions, newer),
        ]
        changes = {
            change.name: [change.old, change.new] for change in history.diff(*found).attributes
        }
        if json:
            _print_json(changes)
        else:
            _console().print(_changes(changes) if changes else "no difference")


def _timeline(
    project: _Project, cls: type[Any], key: tuple[Any, ...]
) -> list[history.TimelineEntry]:
    version_class = inspection.version_class(cls)
    plan = query.plan_of(cls)
    values = key[0] if len(key) == 1 else key
    first = project.session.scalars(query.versions_of(plan, values).limit(1)).first()
    if first is None:
        raise typer.BadParameter(f"there is no {version_class.__name__} of {values!r}")
    return history.timeline(project.session, first)


def _at(cls: type[Any], versions: list[Any], tx: int) -> Any:
    name = inspection.tx_column_name(cls)
    covering = [version for version in versions if getattr(version, name) <= tx]
    if not covering:
        first = getattr(versions[0], name)
        raise typer.BadParameter(f"the first version is of transaction {first}, after {tx}")
    return covering[-1]


def _changes(changes: Changeset) -> Text:
    text = Text()
    for name, (old, new) in changes.items():
        if text:
            text.append("\n")
        text.append(f"{name}: ")
        if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
            _append_lines(text, old, new)
            continue
        if old is not None:
            text.append(_plain(old), "red strike" if new is not None else "red")
            text.append(" -> " if new is not None else " -> None")
        if new is not None:
            text.append(_plain(new), "green")
    return text


def _append_lines(text: Text, old: str, new: str) -> None:
    """Of a text of several lines those that differ, with a line around them."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=1)
    styles = {"-": "red", "+": "green", "@": "dim"}
    for line in list(lines)[2:]:
        text.append(f"\n  {line}", styles.get(line[0]))


@cli.command()
def stats(app: App, url: Url, models: Models = None, json: Json = False) -> None:
    """How much history there is: rows, versions, bytes, waste, the hottest objects.

    Waste are versions that say the same as the one before: vacuum removes them.
    """
    with _opened(app, url) as project:
        found = [
            one for cls in project.models(models) for one in maintenance.stats(project.session, cls)
        ]
        if json:
            _print_json(found)
            return
        table = Table("table", title="history")
        for name in ("rows", "objects", "versions", "size", "waste"):
            table.add_column(name, justify="right")
        table.add_column("hottest objects (versions)")
        for one in found:
            numbers = (f"{n:,}" for n in (one.rows, one.objects, one.versions))
            size = "?" if one.bytes is None else decimal(one.bytes)
            hottest = ", ".join(f"{_plain(key)} ({count:,})" for key, count in one.hottest)
            table.add_row(one.table, *numbers, size, f"{one.waste:,}", hottest)
        _console().print(table)


@cli.command()
def verify(
    app: App,
    url: Url,
    models: Models = None,
    limit: Annotated[int | None, typer.Option(help="stop after so many of a class")] = None,
    json: Json = False,
) -> None:
    """What is wrong with the histories. The exit code is 1 if there is an error."""
    with _opened(app, url) as project:
        found = list(
            dict.fromkeys(
                finding
                for cls in project.models(models)
                for finding in maintenance.verify(project.session, cls, limit=limit)
            )
        )
        if json:
            _print_json(found)
        else:
            console = _console()
            for finding in found:
                style = _SEVERITIES[finding.severity]
                console.print(Text(f"{finding.severity:8}", style), finding.message, soft_wrap=True)
            counts = collections.Counter(finding.severity for finding in found)
            console.print(
                ", ".join(f"{count:,} {name}{'s' * (count > 1)}" for name, count in counts.items())
                or "nothing is wrong"
            )
        if any(finding.severity == "error" for finding in found):
            raise typer.Exit(1)


# -- upkeep


@cli.command()
def backfill(
    app: App,
    url: Url,
    models: Models = None,
    batch_size: Batch = 1000,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Give rows without history a first version."""
    run = partial(maintenance.backfill, batch_size=batch_size)
    _upkeep(app, url, models, run, "versions written", yes=yes, json=json)


@cli.command()
def vacuum(
    app: App,
    url: Url,
    models: Models = None,
    batch_size: Batch = 1000,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Remove versions that say the same as the one before."""
    run = partial(maintenance.vacuum, yield_per=batch_size)
    _upkeep(app, url, models, run, "versions removed", yes=yes, json=json)


@cli.command()
def prune(
    app: App,
    url: Url,
    models: Models = None,
    before: Annotated[
        str | None, typer.Option(help="a date or time (UTC), or a transaction's id")
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="keep so many of each object")
    ] = None,
    batch_size: Batch = 1000,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Remove old versions; what is kept stays right."""
    if before is None and keep_last is None:
        raise typer.BadParameter("give --before, --keep-last, or both")
    at = None if before is None else _moment(before)
    run = partial(maintenance.prune, before=at, keep_last=keep_last, batch_size=batch_size)
    _upkeep(app, url, models, run, "versions removed", yes=yes, json=json)


def _moment(text: str) -> int | dt.datetime:
    if text.isdigit():
        return int(text)
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"--before {text}: {error}") from error
    return at if at.tzinfo is not None else at.replace(tzinfo=dt.timezone.utc)


def _upkeep(
    app: str,
    url: str,
    models: list[str] | None,
    run: Callable[..., int],
    what: str,
    *,
    yes: bool,
    json: bool,
) -> None:
    with _opened(app, url) as project:
        counts = {}
        for cls in project.models(models):
            with _progress(cls.__name__, silent=json) as progress:
                counts[cls.__name__] = run(project.session, cls, commit=yes, progress=progress)
        _end(project.session, yes=yes)
        if json:
            _print_json({"done": yes, "counts": counts})
            return
        for name, count in counts.items():
            _console().print(f"{name}: {count:,} {what}")
        _say_whether(yes)


@cli.command()
def redact(
    model: Model,
    ident: Ident,
    app: App,
    url: Url,
    column: Annotated[
        list[str] | None,
        typer.Option(help="attribute, or attribute=what shall stand there; several are possible"),
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Erase values of one object from its versions and its live row."""
    columns = None
    if column is not None:
        columns = {
            name: value if eq else None for name, eq, value in (c.partition("=") for c in column)
        }
    with _opened(app, url) as project:
        cls = project.model(model)
        count = maintenance.redact(project.session, cls, project.key(cls, ident), columns)
        _end(project.session, yes=yes)
        if json:
            _print_json({"done": yes, "versions": count})
            return
        _console().print(f"{model} {ident}: {count:,} versions redacted")
        _say_whether(yes)


@cli.command()
def repair(
    app: App,
    url: Url,
    models: Models = None,
    batch_size: Batch = 1000,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Mend what verify finds; without --yes only the plan is shown."""
    with _opened(app, url) as project:
        steps = []
        for cls in project.models(models):
            with _progress(cls.__name__, silent=json) as progress:
                steps += maintenance.repair(
                    project.session,
                    cls,
                    dry_run=not yes,
                    batch_size=batch_size,
                    commit=yes,
                    progress=progress,
                )
        _end(project.session, yes=yes)
        if json:
            _print_json({"done": yes, "steps": steps})
            return
        if not steps:
            _console().print("nothing to mend")
            return
        table = Table("what", "where", "how many", "action")
        for step in steps:
            table.add_row(step.kind, step.table, f"{step.count:,}", step.action)
        _console().print(table)
        _say_whether(yes)


def _end(session: Session, *, yes: bool) -> None:
    if yes:
        session.commit()
    else:
        session.rollback()


def _say_whether(yes: bool) -> None:
    text = "Done." if yes else "[yellow]Nothing was changed; with --yes it is done.[/yellow]"
    _console().print(text)


@contextmanager
def _progress(name: str, *, silent: bool) -> Iterator[Callable[[maintenance.Progress], None]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    silent = silent or not console.is_terminal
    bar = Progress(*columns, console=console, transient=True, disable=silent)
    with bar:
        task = bar.add_task(name, total=None)

        def show(progress: maintenance.Progress) -> None:
            text = f"{progress.task} {progress.table}: {progress.done:,}"
            bar.update(task, description=text)

        yield show


def main() -> None:
    """The entry point ``sqlalchemy-history``."""
    cli()
