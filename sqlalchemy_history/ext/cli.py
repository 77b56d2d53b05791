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
import inspect
import json as json_format
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

try:
    import typer
    from rich.console import Console, Group, RenderableType
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
from sqlalchemy_history.plan import (
    ClassPlan,
    Key,
    all_registries,
    as_key,
    class_plan,
    configure_mappers_of,
)

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


class _Answer(NamedTuple):
    """What a command says: to machines, to people, and by its exit code."""

    data: Any
    shown: RenderableType
    code: int = 0


class _Project:
    """The models that ``--app`` names, and a session on the database.

    :ivar silent: no progress is shown.
    """

    def __init__(self, app: str, session: Session, *, silent: bool) -> None:
        sys.path.insert(0, "")
        try:
            found = pkgutil.resolve_name(app if ":" in app else f"{app}:Base")
        except (ImportError, AttributeError, ValueError) as error:
            raise typer.BadParameter(f"--app {app}: {error}") from error
        metadata = getattr(found, "metadata", found)
        self.session = session
        self.silent = silent
        configure_mappers_of(metadata)
        mappers = [m for reg in all_registries() if reg.metadata is metadata for m in reg.mappers]
        plans = [class_plan(mapper.class_) for mapper in sorted(mappers, key=_base_first)]
        self.plans: dict[str, ClassPlan] = {
            plan.mapper.class_.__name__: plan for plan in plans if plan and plan.version_class
        }
        if not self.plans:
            raise typer.BadParameter(f"--app {app}: there is no versioned class in it")

    def model(self, name: str) -> type[Any]:
        if name not in self.plans:
            raise typer.BadParameter(
                f"no versioned class {name!r}; there are: {', '.join(self.plans)}"
            )
        return self.plans[name].mapper.class_

    def models(self, names: list[str] | None) -> list[type[Any]]:
        """The classes of these names, or the base classes of all hierarchies."""
        if names:
            return [self.model(name) for name in names]
        roots: dict[Any, type[Any]] = {}
        for plan in self.plans.values():
            roots.setdefault(plan.root, plan.mapper.class_)
        return list(roots.values())

    def key(self, model: type[Any], ident: str) -> Key:
        """A primary key from the command line, with the types of its columns."""
        columns = sa.inspect(model).primary_key
        parts = ident.split(",") if len(columns) > 1 else [ident]
        if len(parts) != len(columns):
            names = ", ".join(column.name for column in columns)
            raise typer.BadParameter(
                f"the primary key of {model.__name__} is ({names}), not {ident!r}"
            )
        return as_key(map(_parsed, columns, parts))

    def timeline(self, model: str, ident: str) -> list[history.TimelineEntry]:
        """The history of one object, which there has to be."""
        cls = self.model(model)
        key = self.key(cls, ident)
        plan = query.plan_of(cls)
        first = self.session.scalars(query.versions_of(plan, key).limit(1)).first()
        if first is None:
            name = inspection.version_class(cls).__name__
            raise typer.BadParameter(f"there is no {name} of {key!r}")
        return history.timeline(self.session, first)

    def ended(self, data: dict[str, Any], *shown: RenderableType, yes: bool) -> _Answer:
        """The answer of what changes a history: it is kept with ``yes``, and else taken back."""
        if yes:
            self.session.commit()
        else:
            self.session.rollback()
        said = "Done." if yes else "[yellow]Nothing was changed; with --yes it is done.[/yellow]"
        return _Answer({"done": yes, **data}, Group(*shown, said))


def _parsed(column: sa.Column[Any], text: str) -> Any:
    """A value from the command line, with the type of its column."""
    kind: Any = column.type.python_type
    try:
        if issubclass(kind, (dt.date, dt.time)):
            return kind.fromisoformat(text)
        if issubclass(kind, enum.Enum):
            return kind[text]
        return kind.fromhex(text) if issubclass(kind, bytes) else kind(text)
    except (ValueError, KeyError, ArithmeticError) as error:
        raise typer.BadParameter(f"{text!r} is no {kind.__name__}, as {column.name} is") from error


def _base_first(mapper: Any) -> tuple[int, str]:
    return len(list(mapper.iterate_to_root())), mapper.class_.__name__


@contextmanager
def _opened(app: str, url: str, *, silent: bool) -> Iterator[_Project]:
    try:
        engine = sa.create_engine(url)
        if engine.dialect.is_async:
            raise typer.BadParameter(
                f"--url {engine.url.drivername}: give a synchronous driver, such as sqlite, "
                f"postgresql+psycopg or mysql+pymysql"
            )
        try:
            with Session(engine) as session:
                yield _Project(app, session, silent=silent)
        finally:
            engine.dispose()
    except (VersioningError, SQLAlchemyError) as error:
        raise typer.BadParameter(str(getattr(error, "orig", None) or error)) from error


def _command(function: Callable[..., _Answer]) -> Callable[..., _Answer]:
    """Make a command of a function of the project and of the command's own arguments."""

    def run(app: App, url: Url, json: Json = False, **own: Any) -> None:
        with _opened(app, url, silent=json) as project:
            answer = function(project, **own)
            if json:
                _print_json(answer.data)
            else:
                Console(highlight=False, soft_wrap=True).print(answer.shown)
            raise typer.Exit(answer.code)

    _, *arguments = inspect.signature(function, eval_str=True).parameters.values()
    *shared, _ = inspect.signature(run, eval_str=True).parameters.values()
    both = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*arguments, *shared)]
    # what Typer asks a function for; no type of a function has it
    run.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in both}
    cli.command(function.__name__, help=function.__doc__)(run)
    return function


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


@_command
def log(project: _Project, model: Model, ident: Ident) -> _Answer:
    """The versions of one object: when, by whom, what changed."""
    rows = []
    table = Table("transaction", "when (UTC)", "who", "", "changes", title=f"{model} {ident}")
    for entry in project.timeline(model, ident):
        id_, issued_at, user, address = (
            getattr(entry.transaction, name, None)
            for name in ("id", "issued_at", "user_id", "remote_addr")
        )
        operation, style = _OPERATIONS[entry.operation_type]
        rows.append(
            {
                "transaction": id_,
                "issued_at": issued_at,
                "user_id": user,
                "remote_addr": address,
                "operation": operation,
                "changes": entry.changeset,
            }
        )
        when = f"{issued_at:%Y-%m-%d %H:%M:%S}" if issued_at else ""
        who = ", ".join(filter(None, (None if user is None else f"user {user}", address)))
        table.add_row(str(id_), when, who, Text(operation, style), _changes(entry.changeset))
    return _Answer(rows, table)


@_command
def diff(
    project: _Project,
    model: Model,
    ident: Ident,
    older: Annotated[int, typer.Argument(help="a transaction's id")],
    newer: Annotated[int | None, typer.Argument(help="another; the last version, if none")] = None,
) -> _Answer:
    """What differs between two moments of one object."""
    versions = [entry.version for entry in project.timeline(model, ident)]
    last = versions[-1] if newer is None else _at(versions, newer)
    found = history.diff(_at(versions, older), last).attributes
    changes = {change.name: [change.old, change.new] for change in found}
    return _Answer(changes, _changes(changes) or "no difference")


def _at(versions: list[Any], tx: int) -> Any:
    tx_of = query.plan_of(versions[0]).tx_of
    covering = [version for version in versions if tx_of(version) <= tx]
    if not covering:
        first = tx_of(versions[0])
        raise typer.BadParameter(f"the first version is of transaction {first}, after {tx}")
    return covering[-1]


def _changes(changes: Changeset) -> Text:
    return Text("\n").join(_change(name, old, new) for name, (old, new) in changes.items())


def _change(name: str, old: Any, new: Any) -> Text:
    text = Text(f"{name}: ")
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        # of several lines those that differ, with a line around them
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=1)
        for line in list(lines)[2:]:
            text.append(f"\n  {line}", {"-": "red", "+": "green", "@": "dim"}.get(line[0]))
        return text
    if old is not None:
        text.append(_plain(old), "red strike" if new is not None else "red")
        text.append(" -> " if new is not None else " -> None")
    if new is not None:
        text.append(_plain(new), "green")
    return text


@_command
def stats(project: _Project, models: Models = None) -> _Answer:
    """How much history there is: rows, versions, bytes, waste, the hottest objects.

    Waste are versions that say the same as the one before: vacuum removes them.
    """
    found = [
        one for cls in project.models(models) for one in maintenance.stats(project.session, cls)
    ]
    table = Table("table", title="history")
    for name in ("rows", "objects", "versions", "size", "waste"):
        table.add_column(name, justify="right")
    table.add_column("hottest objects (versions)")
    for one in found:
        numbers = (f"{n:,}" for n in (one.rows, one.objects, one.versions))
        size = "?" if one.bytes is None else decimal(one.bytes)
        hottest = ", ".join(f"{_plain(key)} ({count:,})" for key, count in one.hottest)
        table.add_row(one.table, *numbers, size, f"{one.waste:,}", hottest)
    return _Answer(found, table)


@_command
def verify(
    project: _Project,
    models: Models = None,
    limit: Annotated[int | None, typer.Option(min=1, help="stop after so many of a class")] = None,
) -> _Answer:
    """What is wrong with the histories. The exit code is 1 if there is an error."""
    found = list(
        dict.fromkeys(
            finding
            for cls in project.models(models)
            for finding in maintenance.verify(project.session, cls, limit=limit)
        )
    )
    lines = [
        Text.assemble((f"{one.severity:8} ", _SEVERITIES[one.severity]), one.message)
        for one in found
    ]
    counts = collections.Counter(finding.severity for finding in found)
    summary = ", ".join(f"{count:,} {name}{'s' * (count > 1)}" for name, count in counts.items())
    shown = Group(*lines, summary or "nothing is wrong")
    return _Answer(found, shown, code=1 if counts["error"] else 0)


# -- upkeep


@_command
def backfill(
    project: _Project, models: Models = None, batch_size: Batch = 1000, yes: Yes = False
) -> _Answer:
    """Give rows without history a first version."""
    run = partial(maintenance.backfill, batch_size=batch_size)
    return _upkeep(project, models, run, "versions written", yes=yes)


@_command
def vacuum(
    project: _Project, models: Models = None, batch_size: Batch = 1000, yes: Yes = False
) -> _Answer:
    """Remove versions that say the same as the one before."""
    run = partial(maintenance.vacuum, yield_per=batch_size)
    return _upkeep(project, models, run, "versions removed", yes=yes)


@_command
def prune(
    project: _Project,
    models: Models = None,
    before: Annotated[
        str | None, typer.Option(help="a date or time (UTC), or a transaction's id")
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="keep so many of each object")
    ] = None,
    batch_size: Batch = 1000,
    yes: Yes = False,
) -> _Answer:
    """Remove old versions; what is kept stays right."""
    if before is None and keep_last is None:
        raise typer.BadParameter("give --before, --keep-last, or both")
    at = None if before is None else _moment(before)
    run = partial(maintenance.prune, before=at, keep_last=keep_last, batch_size=batch_size)
    return _upkeep(project, models, run, "versions removed", yes=yes)


def _moment(text: str) -> int | dt.datetime:
    if text.isdigit():
        return int(text)
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"--before {text}: {error}") from error
    return at if at.tzinfo is not None else at.replace(tzinfo=dt.timezone.utc)


def _upkeep(
    project: _Project, models: list[str] | None, run: Callable[..., int], what: str, *, yes: bool
) -> _Answer:
    counts = {}
    for cls in project.models(models):
        with _progress(project, cls) as progress:
            counts[cls.__name__] = run(project.session, cls, commit=yes, progress=progress)
    shown = (f"{name}: {count:,} {what}" for name, count in counts.items())
    return project.ended({"counts": counts}, *shown, yes=yes)


@_command
def redact(
    project: _Project,
    model: Model,
    ident: Ident,
    column: Annotated[
        list[str] | None,
        typer.Option(help="attribute, or attribute=what shall stand there; several are possible"),
    ] = None,
    yes: Yes = False,
) -> _Answer:
    """Erase values of one object from its versions and its live row."""
    pairs = [one.partition("=") for one in column or ()]
    columns = {name: value if given else None for name, given, value in pairs}
    cls = project.model(model)
    count = maintenance.redact(project.session, cls, project.key(cls, ident), columns or None)
    shown = f"{model} {ident}: {count:,} versions redacted"
    return project.ended({"versions": count}, shown, yes=yes)


@_command
def repair(
    project: _Project, models: Models = None, batch_size: Batch = 1000, yes: Yes = False
) -> _Answer:
    """Mend what verify finds; without --yes only the plan is shown."""
    run = partial(maintenance.repair, dry_run=not yes, batch_size=batch_size, commit=yes)
    steps = []
    for cls in project.models(models):
        with _progress(project, cls) as progress:
            steps += run(project.session, cls, progress=progress)
    if not steps:
        return _Answer({"done": yes, "steps": steps}, "nothing to mend")
    table = Table("what", "where", "how many", "action")
    for step in steps:
        table.add_row(step.kind, step.table, f"{step.count:,}", step.action)
    return project.ended({"steps": steps}, table, yes=yes)


@contextmanager
def _progress(
    project: _Project, cls: type[Any]
) -> Iterator[Callable[[maintenance.Progress], None]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    silent = project.silent or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(cls.__name__, total=None)

        def show(progress: maintenance.Progress) -> None:
            text = f"{progress.task} {progress.table}: {progress.done:,}"
            bar.update(task, description=text)

        yield show


def main() -> None:
    """The entry point ``sqlalchemy-history``."""
    cli()
