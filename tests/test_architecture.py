"""The shape of the package, as docs/architecture.rst draws it: who may import whom, and when."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = "sqlalchemy_history"

# A module imports only from the levels above it in this list.
LEVELS = [
    "on_demand",
    "exc",
    "listeners",
    "operation",
    "config",
    "changeset",
    "difference",
    "schema",
    "latest",
    "strategy",
    "plan",
    "keys",
    "compare",
    "prepared",
    "query",
    "context",
    "transaction",
    "relationships",
    "handover",
    "revert",
    "version",
    "history",
    "undo",
    "past",
    "versions",
    "mapping",
    "models",
    "statement",
    "unit_of_work",
    "capture",
    "write",
    "write_postgresql",
    "triggers",
    "references",
    "record",
    "cascades",
    "bulk",
    "execution",
    "stamp",
    "tracking",
    "hooks",
    "inspection",
    "maintenance",
    "untracked",
    "watch",
    "native",
    "events",
    "manager",
    "mixins",
    "plugins",
    "__init__",
    "ext",
    "__main__",
]

# Modules that only re-export, for users of the peers: they may import from every level but
# `__init__`, only `__init__` may import them, and they hold no definitions.
RE_EXPORTS = {"utils", "reverter"}

# Parts of SQLAlchemy that are optional too: they need greenlet, and import asyncio.
NEEDS_GREENLET = {"sqlalchemy.ext.asyncio", "sqlalchemy.util.concurrency"}

# What a program needs that looks back, executes bulk statements, or makes a mistake.
ON_DEMAND = {f"{PACKAGE}.{name}" for name in ("revert", "record", "cascades", "bulk")} | {"difflib"}

# Parts of SQLAlchemy that are loaded when a database of that kind is used.
DIALECTS = "sqlalchemy.dialects."

READ_SIDE = {"query", "relationships", "handover", "revert", "version", "history", "undo", "past"}
WRITE_SIDE = {
    "unit_of_work",
    "capture",
    "write",
    "write_postgresql",
    "references",
    "record",
    "cascades",
    "bulk",
    "execution",
}
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@dataclass(frozen=True)
class Import:
    """One import of a module: what it names, and whether it runs when the module is loaded."""

    target: str
    line: int
    inside_function: bool
    for_types_only: bool


@cache
def modules() -> dict[str, Path]:
    """Return our modules by dotted name below the package; the root is `__init__`."""
    found = {}
    for path in sorted(_folder().rglob("*.py")):
        parts = path.relative_to(_folder()).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or "__init__"
        found[name] = path
    return found


def imports(name: str) -> Iterator[Import]:
    """Yield the imports of one of our modules, with absolute names."""
    path = modules()[name]
    package = PACKAGE.split(".") if name == "__init__" else [PACKAGE, *name.split(".")]
    if name != "__init__" and path.name != "__init__.py":
        package = package[:-1]

    def walk(node: ast.AST, inside_function: bool, for_types_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, inside_function, for_types_only)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                origin = [*base, *(child.module.split(".") if child.module else [])]
                for alias in child.names:
                    # `from . import plan` names a module, `from .plan import VersionPlan` does not.
                    target = ".".join([*origin, alias.name])
                    if target.removeprefix(f"{PACKAGE}.") not in modules():
                        target = ".".join(origin)
                    yield Import(target, child.lineno, inside_function, for_types_only)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for branch in child.body:
                    yield from walk(ast.Module([branch], []), inside_function, True)
                for branch in child.orelse:
                    yield from walk(ast.Module([branch], []), inside_function, for_types_only)
            else:
                deeper = inside_function or isinstance(
                    child, ast.FunctionDef | ast.AsyncFunctionDef
                )
                yield from walk(child, deeper, for_types_only)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def our_imports(name: str) -> Iterator[tuple[str, Import]]:
    """Yield (our module, import) for what a module of ours imports from the package."""
    for one in imports(name):
        ours = one.target == PACKAGE or one.target.startswith(f"{PACKAGE}.")
        if ours and not one.for_types_only:
            yield one.target.removeprefix(PACKAGE).lstrip(".") or "__init__", one


def level_name(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def where(name: str, one: Import) -> str:
    return f"{modules()[name].relative_to(_folder().parent)}:{one.line}"


def test_every_module_has_a_level() -> None:
    """Each module is in the list of levels, or is one of those that only re-export."""
    levels = {level_name(name) for name in modules()}
    assert levels <= set(LEVELS) | RE_EXPORTS


def test_modules_import_only_from_levels_above() -> None:
    """No module imports from its own level or one below; annotations may name any class."""
    wrong = []
    for name in modules():
        mine = level_name(name)
        for target, one in our_imports(name):
            theirs = level_name(target)
            if mine == theirs and "." in name + target:
                continue  # inside one subpackage: judged by the test of cycles
            if mine in RE_EXPORTS:
                allowed = theirs != "__init__"
            elif theirs in RE_EXPORTS:
                allowed = mine == "__init__"
            else:
                allowed = LEVELS.index(theirs) < LEVELS.index(mine)
            if not allowed:
                wrong.append(f"{where(name, one)}: {mine} imports {theirs}")
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    """Modules do not import each other in a circle, subpackages included."""
    graph = {
        name: {target for target, _ in our_imports(name)} & set(modules()) for name in modules()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for target in sorted(graph[name]):
            if target != name:
                visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_read_side_and_write_side_do_not_know_each_other() -> None:
    """Nothing that reads history imports what writes it, and the other way round."""
    wrong = [
        where(name, one)
        for name in modules()
        for target, one in our_imports(name)
        for here, there in ((READ_SIDE, WRITE_SIDE), (WRITE_SIDE, READ_SIDE))
        if level_name(name) in here and level_name(target) in there
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_is_called_utils_or_the_like() -> None:
    """A module is called by what it is about; `utils` is only there to re-export."""
    parts = {part for name in modules() for part in name.split(".")}
    assert not parts & (FORBIDDEN_NAMES - RE_EXPORTS)


def test_private_methods_stay_in_their_module() -> None:
    """What a class does for other modules has a public name; what begins with `_` is its own."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    private = {
        name: {
            method.name
            for cls in ast.walk(tree)
            if isinstance(cls, ast.ClassDef)
            for method in cls.body
            if isinstance(method, ast.FunctionDef) and re.match("_[^_]", method.name)
        }
        for name, tree in trees.items()
    }
    wrong = [
        f"{name}, line {node.lineno}: {ast.unparse(node)}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) not in {"self", "cls", "statement"}  # the last: SQLAlchemy's
        and node.attr not in private[name]
        and any(node.attr in methods for methods in private.values())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["__init__", *sorted(RE_EXPORTS)])
def test_re_exporting_modules_hold_no_logic(name: str) -> None:
    """`__init__` and what is kept for users of the peers have imports and constants only."""
    if name not in modules():
        pytest.skip(f"there is no {name}")
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    body = list(tree.body)
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            body.remove(node)  # names that are there for type checkers now, and on demand else
            body += [*node.body, *node.orelse]
    for node in body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(
            node, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign
        ), f"{name}.py, line {node.lineno}: {ast.unparse(node).splitlines()[0]}"


def test_imports_inside_functions_are_for_optional_frameworks_only() -> None:
    """Our own modules, SQLAlchemy and the standard library are imported at the top."""
    own = {PACKAGE, "sqlalchemy", *sys.stdlib_module_names}
    wrong = [
        f"{where(name, one)}: {one.target}"
        for name in modules()
        for one in imports(name)
        if one.inside_function
        and one.target not in NEEDS_GREENLET | ON_DEMAND
        and not one.target.startswith(DIALECTS)
        and one.target.split(".")[0] in own
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_frameworks_are_imported_in_ext_only() -> None:
    """Outside `ext/`, the package imports the standard library and SQLAlchemy."""
    own = {PACKAGE, "sqlalchemy", "typing_extensions", *sys.stdlib_module_names}
    wrong = [
        f"{where(name, one)}: {one.target}"
        for name in modules()
        if level_name(name) != "ext"
        for one in imports(name)
        if one.target.split(".")[0] not in own
    ]
    assert not wrong, "\n".join(wrong)


_IMPORT_EFFECTS = """
import sys
import sqlalchemy, sqlalchemy.orm, sqlalchemy.ext.asyncio, sqlalchemy.ext.associationproxy
import support

modules = set(sys.modules)
import sqlalchemy_history
ours = {"sqlalchemy_history", "sqlalchemy", *sys.stdlib_module_names}
print(sorted({name.split(".")[0] for name in set(sys.modules) - modules} - ours))
ours = lambda module: module.startswith("sqlalchemy_history")
print(sorted(support.class_listeners(ours)))
"""


def test_import_has_no_side_effect() -> None:
    """The import loads only the package, SQLAlchemy and the stdlib, and listens to nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORT_EFFECTS],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(_folder().parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_a_program_that_only_writes_loads_nothing_that_looks_back() -> None:
    """Reverts, timelines, the time machine, undo and upkeep are imported when they are asked for."""
    code = "import sys, sqlalchemy_history; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(_folder().parent)}
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    later = ("difference", "history", "maintenance", "past", "revert", "undo")
    names = {*(f"{PACKAGE}.{name}" for name in later), "sqlalchemy.ext.associationproxy"}
    assert names.isdisjoint(loaded.split())


def test_public_names_are_there() -> None:
    """`__all__` is sorted as written, has no name twice, and each name can be imported."""
    import sqlalchemy_history

    names = sqlalchemy_history.__all__
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(sqlalchemy_history, name)] == []
