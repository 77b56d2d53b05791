"""Upkeep of histories that are there already: set-based, in batches, restartable.

Each function takes the session first, so ``await async_session.run_sync(backfill, Article)`` works
for all. A model stands for its whole inheritance hierarchy and for the association tables of its
many-to-many relationships. With ``commit=True`` each batch is committed: locks are short, and a run
that was killed goes on where it was when it is started again.
"""

from .backfill import backfill
from .findings import Finding, verify
from .prune import prune, vacuum
from .redact import redact
from .repair import Repair, repair
from .stats import HistoryStats, count_versions, stats
from .upkeep import Progress

__all__ = [
    "Finding",
    "HistoryStats",
    "Progress",
    "Repair",
    "backfill",
    "count_versions",
    "prune",
    "redact",
    "repair",
    "stats",
    "vacuum",
    "verify",
]
