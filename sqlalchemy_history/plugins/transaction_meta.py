"""Keys and values that belong to a transaction: ``tx.meta = {"ticket": "A-17"}``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Unicode, UnicodeText
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.orm import attribute_keyed_dict, registry
from typing_extensions import override

from .rows import DetailsPlugin


class TransactionMetaPlugin(DetailsPlugin):
    """Gives transactions ``meta``, a dictionary of texts, kept in the table ``transaction_meta``.

    ::

        tx = versioning_manager.unit_of_work(session).create_transaction(session)
        tx.meta = {"ticket": "A-17"}

    :ivar model_class: the class of the rows, which ``Transaction.meta_relation`` holds by key.
    """

    @override
    def build_classes(self, manager: Any, in_registry: registry) -> None:
        cls = self._build(
            manager.transaction_cls,
            in_registry,
            "meta_relation",
            "TransactionMeta",
            "transaction_meta",
            Column("key", Unicode(255), primary_key=True),
            Column("value", UnicodeText),
            collection_class=attribute_keyed_dict("key"),
        )
        manager.transaction_cls.meta = association_proxy(
            "meta_relation", "value", creator=lambda key, value: cls(key=key, value=value)
        )
