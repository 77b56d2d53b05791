"""Full history for SQLAlchemy models: who changed what, when; show it as it was; put it back.

::

    from sqlalchemy_history import make_versioned

    make_versioned(user_cls=None)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        ...

    article.versions[0].name
    article.versions[0].revert()
"""

from typing import TYPE_CHECKING

from .changeset import Changeset
from .config import Options, OptionsDict
from .context import transaction_context, versioning_disabled
from .exc import (
    ClassNotVersioned,
    ImproperlyConfigured,
    MissingContext,
    NoChangesAttribute,
    ReverterException,
    TableNotVersioned,
    UntrackedWrite,
    UntrackedWriteWarning,
    VersioningError,
)
from .inspection import (
    changeset,
    end_tx_attr,
    end_tx_column_name,
    get_association_proxies,
    get_versioning_manager,
    is_modified,
    is_modified_or_deleted,
    is_session_modified,
    is_versioned,
    option,
    parent_class,
    parent_table,
    transaction_class,
    tx_column_name,
    version_class,
    version_obj,
    version_table,
    versioned_column_properties,
    versioned_objects,
)
from .manager import VersioningManager, make_versioned, remove_versioning, versioning_manager
from .on_demand import on_demand
from .operation import Operation
from .query import as_of, versions_between
from .transaction import TransactionBase, TransactionFactory
from .unit_of_work import UnitOfWork
from .version import VersionBase
from .versions import Versioned

if TYPE_CHECKING:
    from .difference import AttributeChange, Diff, RelationChange
    from .history import TimelineEntry, blame, diff, timeline, transaction_at
    from .maintenance.backfill import backfill
    from .maintenance.findings import Finding, verify
    from .maintenance.prune import prune, vacuum
    from .maintenance.redact import redact
    from .maintenance.repair import Repair, repair
    from .maintenance.stats import HistoryStats, count_versions, stats
    from .maintenance.upkeep import Progress
    from .past import ReadOnlyError, TimeMachine, time_machine
    from .revert import Reverted, RevertReport
    from .undo import Conflict, RevertConflict, UndoReport, revert_transaction
else:
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "difference": "AttributeChange Diff RelationChange",
            "history": "TimelineEntry blame diff timeline transaction_at",
            "maintenance": "Finding HistoryStats Progress Repair backfill count_versions prune redact "
            "repair stats vacuum verify",
            "past": "ReadOnlyError TimeMachine time_machine",
            "revert": "RevertReport Reverted",
            "undo": "Conflict RevertConflict UndoReport revert_transaction",
        },
    )

__version__ = "1.0.0.dev0"

__all__ = [
    "AttributeChange",
    "Changeset",
    "ClassNotVersioned",
    "Conflict",
    "Diff",
    "Finding",
    "HistoryStats",
    "ImproperlyConfigured",
    "MissingContext",
    "NoChangesAttribute",
    "Operation",
    "Options",
    "OptionsDict",
    "Progress",
    "ReadOnlyError",
    "RelationChange",
    "Repair",
    "RevertConflict",
    "RevertReport",
    "Reverted",
    "ReverterException",
    "TableNotVersioned",
    "TimeMachine",
    "TimelineEntry",
    "TransactionBase",
    "TransactionFactory",
    "UndoReport",
    "UnitOfWork",
    "UntrackedWrite",
    "UntrackedWriteWarning",
    "VersionBase",
    "Versioned",
    "VersioningError",
    "VersioningManager",
    "as_of",
    "backfill",
    "blame",
    "changeset",
    "count_versions",
    "diff",
    "end_tx_attr",
    "end_tx_column_name",
    "get_association_proxies",
    "get_versioning_manager",
    "is_modified",
    "is_modified_or_deleted",
    "is_session_modified",
    "is_versioned",
    "make_versioned",
    "option",
    "parent_class",
    "parent_table",
    "prune",
    "redact",
    "remove_versioning",
    "repair",
    "revert_transaction",
    "stats",
    "time_machine",
    "timeline",
    "transaction_at",
    "transaction_class",
    "transaction_context",
    "tx_column_name",
    "vacuum",
    "verify",
    "version_class",
    "version_obj",
    "version_table",
    "versioned_column_properties",
    "versioned_objects",
    "versioning_disabled",
    "versioning_manager",
    "versions_between",
]
