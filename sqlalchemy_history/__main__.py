"""The command ``sqlalchemy-history``, also as ``python -m sqlalchemy_history``."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Run the command line; without its extra, say so in one line."""
    try:
        cli = import_module("sqlalchemy_history.ext.cli")
    except ImportError as error:
        sys.exit(f"sqlalchemy-history: {error}")
    cli.main()


if __name__ == "__main__":
    main()
