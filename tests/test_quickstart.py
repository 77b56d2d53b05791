"""What a newcomer runs and reads first does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import sqlalchemy_history

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.rst").read_text(encoding="utf-8")

# The package that the tests import is what the examples should import too, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(sqlalchemy_history.__file__).parent.parent)}

# Every warning is an error; an example need not close its database before Python ends.
STRICT = ("-W", "error", "-W", "ignore:unclosed database:ResourceWarning")


def run(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, *STRICT, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


def blocks(language: str) -> list[str]:
    """Return the code blocks of README in one language, unindented."""
    found = re.findall(
        rf"^\.\. code-block:: {language}\n\n((?:(?:    .*)?\n)+)", README, re.MULTILINE
    )
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def test_quickstart_shows_versions_changeset_past_revert_and_revival() -> None:
    """The quickstart prints the life of an article, as the documentation shows it."""
    printed = run("docs/examples/quickstart.py")
    shown = (ROOT / "docs/examples/quickstart.txt").read_text(encoding="utf-8")
    assert printed == shown.splitlines()


def test_readme_example_prints_what_its_comments_say(tmp_path: Path) -> None:
    """README's example runs as it stands, and each `print(...)  # text` prints that text."""
    (example,) = blocks("python")
    promised = re.findall(r"^\s*print\(.*\)  # (.+)$", example, re.MULTILINE)
    assert len(promised) == example.count("print(")
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    assert run(str(script)) == promised


def test_readme_has_two_commands() -> None:
    """README has two commands to paste, one line each, which set themselves up."""
    commands = blocks("sh")
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("python3 -m venv ")
        assert len(command.strip().splitlines()) == 1
