"""The column of this package in the table that compares it with its peers."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from test_quickstart import ENVIRONMENT, ROOT

SCRIPT = ROOT / "benchmarks" / "features.py"
TABLE = ROOT / "docs" / "explanation" / "comparison.csv"


def test_the_table_says_of_us_what_is_so(tmp_path: Path) -> None:
    """Each situation comes out as the table says, and the table has each situation."""
    rows = csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines())
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "sqlalchemy_history"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == [row["this package"] for row in rows]
