"""docs/errors.rst, the page of all errors, against the code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlalchemy_history
from sqlalchemy_history import exc

PACKAGE = Path(inspect.getfile(sqlalchemy_history)).parent
PAGE = Path(__file__).parent.parent / "docs" / "errors.rst"

# NoHistory and KeyError do not get out; the command line says what it says to who is there
NOT_FOR_THE_PAGE = {"NoHistory", "KeyError", "typer.BadParameter", "typer.Exit"}


def complaint(message: ast.AST) -> list[str]:
    """What is wrong, without the advice that follows: the parts of it that are always the same."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    text = "".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in parts)
    sentences = [
        [part.strip(" '\":\n") for part in sentence.split("\0") if len(part) >= 12]
        for sentence in re.split(r"; |\. ", text)
    ]
    return next(filter(None, sentences), [])


def raised() -> Iterator[tuple[str, list[str]]]:
    """Where an error is raised, and the parts of its message that are long enough to tell it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if ast.unparse(node.exc.func) in NOT_FOR_THE_PAGE or not node.exc.args:
                continue
            if parts := complaint(node.exc.args[0]):
                yield f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}", parts


@pytest.fixture(scope="module")
def page() -> str:
    return " ".join(PAGE.read_text(encoding="utf-8").split())


def test_every_class_of_errors_is_on_the_page(page: str) -> None:
    """An error or a warning that can be caught is one that can be read about."""
    named = [
        *vars(exc).values(),
        *(getattr(sqlalchemy_history, n) for n in sqlalchemy_history.__all__),
    ]
    classes = {c.__name__ for c in named if inspect.isclass(c) and issubclass(c, Exception)}
    assert [name for name in sorted(classes) if not re.search(rf"\b{name}\b", page)] == []


@pytest.mark.parametrize(("where", "parts"), [pytest.param(w, p, id=w) for w, p in raised()])
def test_every_message_is_on_the_page(page: str, where: str, parts: list[str]) -> None:
    """Who searches the page for a message, without the names in it, finds it."""
    longest = max(parts, key=len)
    assert longest in page
