"""Plugins: the built-in ones, and what one of your own is made of.

::

    make_versioned(plugins=[TransactionMetaPlugin(), ActivityPlugin()])
"""

from sqlalchemy_history.hooks import TX, Plugin, PluginCollection, Written

from .activity import ActivityPlugin
from .change_log import ChangeLogPlugin
from .null_delete import NullDeletePlugin
from .property_mod_tracker import PropertyModTrackerPlugin
from .transaction_changes import TransactionChangesPlugin
from .transaction_meta import TransactionMetaPlugin

__all__ = [
    "TX",
    "ActivityPlugin",
    "ChangeLogPlugin",
    "NullDeletePlugin",
    "Plugin",
    "PluginCollection",
    "PropertyModTrackerPlugin",
    "TransactionChangesPlugin",
    "TransactionMetaPlugin",
    "Written",
]
