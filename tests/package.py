"""The package as users get it: built, installed alone into an environment of its own, imported.

``tox -e package`` runs this; it is no part of the ordinary tests, since it installs from a package
index and builds.
"""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {"ext.alembic": "alembic", "ext.flask": "flask", "ext.cli": "cli"}


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel, the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [found] = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and what it requires."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=True)
    found = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(found, "-m", "pip", "install", "--quiet", wheel)
    return found


@pytest.fixture
def say(python: Path, tmp_path: Path) -> Any:
    """``say(code)`` runs code, far from the checkout, with warnings as errors; what it prints."""

    def run_code(code: str) -> Any:
        return json.loads(run(python, "-W", "error", "-I", "-c", code, cwd=tmp_path))

    return run_code


def test_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """Every file of the package is in the wheel, the marker of types too; no test, no document."""
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    files = (p for p in (ROOT / "sqlalchemy_history").rglob("*") if p.is_file())
    expected = {p.relative_to(ROOT).as_posix() for p in files if p.suffix != ".pyc"}
    assert names == expected
    assert "sqlalchemy_history/py.typed" in names


def test_sdist_is_complete(dist: Path) -> None:
    """The sdist has what is needed to test, to document and to build the package."""
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("tests", "docs", "benchmarks", "sqlalchemy_history")
    needed = {"LICENSE", "README.rst", "CHANGES.rst", "pyproject.toml", "tox.ini"} | {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sorted(needed - names) == []


def test_metadata(wheel: Path, say: Any) -> None:
    """The metadata tell the version, the Pythons and the extras; the description is README."""
    archive = zipfile.ZipFile(wheel)
    [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Version"] == say(
        "import json, sqlalchemy_history as h; print(json.dumps(h.__version__))"
    )
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(EXTRAS.values()) <= set(metadata.get_all("Provides-Extra", []))
    assert metadata.get_payload() == (ROOT / "README.rst").read_text(encoding="utf-8")


def test_it_needs_only_sqlalchemy(python: Path) -> None:
    """What an installation brings is SQLAlchemy with what that requires."""
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json"))
    found = {entry["name"].lower().replace("_", "-") for entry in listed}
    ours = {"sqlalchemy-history-next", "sqlalchemy"}
    assert ours <= found
    assert found - ours <= {"typing-extensions", "greenlet", "pip", "setuptools"}
    run(python, "-m", "pip", "check")


def test_public_names(say: Any) -> None:
    """Every public name is there without any extra, and is listed by dir()."""
    assert (
        say("""
import json, sqlalchemy_history as history
missing = [name for name in history.__all__ if name not in dir(history)]
missing += [name for name in history.__all__ if getattr(history, name, None) is None]
print(json.dumps(missing))
""")
        == []
    )


def test_import_loads_what_is_used(say: Any) -> None:
    """The import loads no upkeep, no plugin, no integration, no triggers and no asyncio."""
    loaded = say("""
import json, sys, sqlalchemy.orm
before = set(sys.modules)
import sqlalchemy_history
print(json.dumps(sorted(set(sys.modules) - before)))
""")
    unused = ("maintenance", "history", "undo", "plugins", "ext", "mixins", "utils", "reverter")
    triggers = ("native.postgresql", "native.sqlite", "native.mysql")
    parts = [f"sqlalchemy_history.{name}" for name in (*unused, *triggers)]
    parts += ["asyncio", "greenlet", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects"]
    assert [n for n in loaded if any(n == p or n.startswith(f"{p}.") for p in parts)] == []


def test_every_module_without_extras(say: Any) -> None:
    """All modules but those of the extras can be imported with SQLAlchemy alone."""
    failed = say("""
import importlib, json, pkgutil, sqlalchemy_history as history
failed = []
for module in pkgutil.walk_packages(history.__path__, "sqlalchemy_history.", lambda name: None):
    try:
        importlib.import_module(module.name)
    except ImportError:
        failed.append(module.name.removeprefix("sqlalchemy_history."))
print(json.dumps(failed))
""")
    assert set(failed) == set(EXTRAS)


@pytest.mark.parametrize("module", EXTRAS)
def test_missing_extra(say: Any, module: str) -> None:
    """An integration whose framework is missing says which extra brings it."""
    message = say(f"""
import json
try:
    import sqlalchemy_history.{module}
except ImportError as error:
    print(json.dumps(str(error)))
""")
    assert f"pip install 'sqlalchemy-history-next[{EXTRAS[module]}]'" in message


def test_command_line_without_its_extra(python: Path, tmp_path: Path) -> None:
    """The command that every installation has says the same, and no traceback."""
    command = python.with_name("sqlalchemy-history")
    done = subprocess.run([command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "pip install 'sqlalchemy-history-next[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_quickstart(python: Path, tmp_path: Path) -> None:
    """The example that README starts with runs."""
    script = tmp_path / "quickstart.py"
    script.write_bytes((ROOT / "docs/examples/quickstart.py").read_bytes())
    assert run(python, "-W", "error", script, cwd=tmp_path)
