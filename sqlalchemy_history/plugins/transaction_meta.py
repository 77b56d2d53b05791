"""Keys and values that belong to a transaction: ``tx.meta = {"ticket": "A-17"}``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Unicode, UnicodeText
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.orm import (
    Session,
    attribute_keyed_dict,
    foreign,
    registry,
    relationship,
)
from typing_extensions import override

from sqlalchemy_history.hooks import Plugin

from .rows import move_rows, new_class, new_table


class TransactionMetaPlugin(Plugin):
    """Gives transactions ``meta``, a dictionary of texts, kept in the table ``transaction_meta``.

    ::

        tx = versioning_manager.unit_of_work(session).create_transaction(session)
        tx.meta = {"ticket": "A-17"}

    :ivar model_class: the class of the rows, which ``Transaction.meta_relation`` holds by key.
    """

    model_class: Any = None

    @override
    def build_classes(self, manager: Any, in_registry: registry) -> None:
        transaction = manager.transaction_cls
        table = new_table(
            in_registry,
            self,
            "transaction_meta",
            (
                Column("transaction_id", BigInteger, primary_key=True, autoincrement=False),
                Column("key", Unicode(255), primary_key=True),
                Column("value", UnicodeText),
            ),
        )
        cls = self.model_class = new_class("TransactionMeta", __name__, in_registry, table)
        transaction.__mapper__.add_property(
            "meta_relation",
            relationship(
                cls,
                primaryjoin=lambda: transaction.id == foreign(table.c.transaction_id),
                collection_class=attribute_keyed_dict("key"),
                cascade="all, delete-orphan",
                backref="transaction",
            ),
        )
        transaction.meta = association_proxy(
            "meta_relation", "value", creator=lambda key, value: cls(key=key, value=value)
        )

    @override
    def transaction_moved(
        self, session: Session, connection: Connection, old: int, new: int | None
    ) -> None:
        move_rows(session, connection, self.model_class, old, new)
