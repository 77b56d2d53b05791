"""Every example in a docstring of the package and on a page of the documentation does what it says."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pages
import sqlalchemy_history

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(sqlalchemy_history.__path__, "sqlalchemy_history.")
    # Optional frameworks may be missing; their tests are where the framework is.
    if not module.name.startswith("sqlalchemy_history.ext.")
)

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.rst"))

# Every warning is an error; but an example need not close its database before Python ends, and
# Advanced Alchemy, which Litestar imports where it is there, uses what SQLAlchemy 2.1 deprecates.
IGNORED = "unclosed database:ResourceWarning", "The declarative_mixin decorator:DeprecationWarning"
STRICT = ("-W", "error", *(part for what in IGNORED for part in ("-W", f"ignore:{what}")))


@pytest.mark.parametrize("name", ["sqlalchemy_history", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    """The examples of one module run."""
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0


def run_page(page: Path, here: Path) -> subprocess.CompletedProcess[str]:
    """Run the examples of a page in the directory ``here``."""
    return subprocess.run(
        [sys.executable, *STRICT, pages.__file__, str(page)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(Path(sqlalchemy_history.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("name", PAGES)
def test_examples_on_pages(name: str, tmp_path: Path) -> None:
    """The examples of one page run, in a process and a directory of their own."""
    page, here = DOCS / name, tmp_path / "here"
    shutil.copytree(page.parent, here, ignore=shutil.ignore_patterns("*.rst", "*.json"))
    done = run_page(page, here)
    said = done.stdout + done.stderr
    assert (done.returncode, said) == (0, ""), said


WRONG = {
    "prompt": ">>> 1 + 1\n3\n",
    "python": ".. code-block:: python\n\n    1 / 0\n",
    "python that does not run": ".. not run: why\n\n.. code-block:: python\n\n    1 /\n",
    "command": ".. code-block:: console\n\n    $ false\n",
    "output": ".. code-block:: console\n\n    $ echo one\n    two\n",
    "in a list": "* item:\n\n  .. code-block:: python\n\n      1 / 0\n",
    "diff": (
        ".. code-block:: text\n    :caption: a.txt\n\n    one\n\n"
        ".. code-block:: diff\n    :caption: a.txt\n\n    -two\n    +three\n"
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_example_is_noticed(kind: str, tmp_path: Path) -> None:
    """An example that fails, or prints something else, fails its page."""
    page = tmp_path / "page.rst"
    page.write_text(f"Title\n=====\n\n{WRONG[kind]}", encoding="utf-8")
    assert run_page(page, tmp_path).returncode == 1


@pytest.mark.parametrize("name", PAGES)
def test_no_example_escapes(name: str) -> None:
    """Python and commands stand in blocks that run, or in files that run or that a test runs."""
    text = (DOCS / name).read_text(encoding="utf-8")
    found = list(pages.blocks(text))
    assert sum(block.language != "prose" for block in found) == text.count(".. code-block::")
    for block in found:
        if block.language == "prose":
            for literal in re.findall(r"::\n\n((?:[ ]+.*\n|\n)+)", block.body):
                assert not re.search(
                    r"^\s*(import|from \w+ import|def|class|with|\$) ", literal, re.M
                )
        else:
            assert block.language not in ("sh", "bash", "py", "pycon")
    tests = "".join(test.read_text(encoding="utf-8") for test in DOCS.parent.glob("tests/*.py"))
    for file in re.findall(r"^\.\. literalinclude:: (?:.*/)?(\w+\.py)", text, re.M):
        assert (
            f"from {file[:-3]} import" in text or f"/{file}" in tests or file == "test_plugins.py"
        )
