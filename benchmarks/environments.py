"""Virtual environments, one for each group of contenders that can live together.

They are made on demand in ``.bench/`` under the checkout, which ignores itself in git, and kept
for the next run. Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".bench"

DRIVERS = ("psycopg[binary]==3.3.9", "PyMySQL==1.2.4")

#: What each environment has besides SQLAlchemy and the drivers. ``core`` serves plain,
#: hand-written and ours: ours is not installed, the checkout is put on the path.
PACKAGES: dict[str, tuple[str, ...]] = {
    "core": (),
    "history": ("SQLAlchemy-History==2.2.1",),
    "continuum": ("SQLAlchemy-Continuum==2.0.0",),
    "postgresql-audit": ("PostgreSQL-Audit==0.18.0",),
    "plot": ("matplotlib==3.10.*",),
}


def python_of(name: str, sqlalchemy: str) -> Path:
    """The interpreter of environment *name*, made now if it is missing or out of date."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = CACHE / f"{name}-py{version}-sqlalchemy{sqlalchemy}"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    requirements = [f"SQLAlchemy=={sqlalchemy}", *DRIVERS, *PACKAGES[name]]
    stamp = folder / "requirements.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8").split() == requirements:
        return python
    print(f"setting up the environment {name!r}", file=sys.stderr, flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *requirements], check=True)
    stamp.write_text("\n".join(requirements), encoding="utf-8")
    return python


def draw(data: Path) -> None:
    """Draw the plot of the figures in *data*, next to it."""
    python = python_of("plot", "2.0.58")
    subprocess.run([str(python), "-m", "benchmarks.plot", str(data)], cwd=ROOT, check=True)
