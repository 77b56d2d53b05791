"""Alembic: migrations carry history along.

One line in ``env.py``::

    import sqlalchemy_history.ext.alembic

Autogenerate then sees version tables, with mappers configured or not, and adds what a history needs
when its tables change: first versions for tables that become versioned, the values of new columns
in the versions that are valid now, ends for versions after the strategy changed to validity.

A column or table that was renamed says so, and is renamed in the history too::

    headline = mapped_column(String(50), info={"renamed_from": "title"})
    __table_args__ = {"info": {"renamed_from": "post"}}

``context.configure(..., history_keep_dropped_columns=True)`` keeps columns in version tables that
their parents have lost. For migrations that are written by hand there are the operations
``op.backfill_versions``, ``op.drop_versions``, ``op.sync_versions``, ``op.link_versions``,
``op.alter_versioned_column``, ``op.rename_versioned_column`` and ``op.rename_versioned_table``.
They need a connection: ``--sql`` cannot know what is in the database.
"""

try:
    import alembic

    if tuple(map(int, alembic.__version__.split(".")[:2])) < (1, 18):
        raise ImportError(f"Alembic {alembic.__version__} knows no priorities of comparators")
except ImportError as error:
    raise ImportError(
        "sqlalchemy_history.ext.alembic needs Alembic 1.18 or newer: "
        "pip install 'sqlalchemy-history-next[alembic]'"
    ) from error

# importing them is what registers them with Alembic
from . import autogenerate, operations

__all__ = ["autogenerate", "operations"]
