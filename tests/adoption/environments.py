"""An environment for each of the peers: one of them has our import name."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import sqlalchemy

_CONTINUUM = "2.0.0" if sys.version_info >= (3, 11) else "1.8.0"  # the last for this Python
PEERS = {
    "sqlalchemy_history": "SQLAlchemy-History==2.2.1",
    "sqlalchemy_continuum": f"SQLAlchemy-Continuum=={_CONTINUUM}",
}
_DRIVERS = ("psycopg[binary]>=3.1.13", "PyMySQL>=1.1")


class Offline(Exception):
    """The environment is not there, and what belongs into it cannot be installed."""


def python_of(peer: str, cache: Path) -> Path:
    """The interpreter of an environment with `peer`, made now if it is missing or out of date.

    :raises Offline: if it cannot be made.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}-{sqlalchemy.__version__}"
    folder = cache / f"{peer}-{version}"
    python = folder / "bin" / "python"
    requirements = [f"SQLAlchemy[asyncio]=={sqlalchemy.__version__}", PEERS[peer], *_DRIVERS]
    stamp = folder / "requirements.txt"
    with (cache / f"{peer}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of a test run want the same
        if stamp.exists() and stamp.read_text(encoding="utf-8").splitlines() == requirements:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        install = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        for command in ([sys.executable, "-m", "venv", str(folder)], [*install, *requirements]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Offline(f"{PEERS[peer]} cannot be installed: {done.stderr.strip()[-500:]}")
        stamp.write_text("\n".join(requirements), encoding="utf-8")
    return python
