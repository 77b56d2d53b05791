"""Which classes a transaction changed: ``tx.entity_names``, without a look at any version table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Unicode,
    and_,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import registry
from typing_extensions import override

from sqlalchemy_history.config import RECORDED_BY_PLUGIN
from sqlalchemy_history.hooks import TX, Written
from sqlalchemy_history.mapping import adapt, version_parts
from sqlalchemy_history.plan import ClassPlan, same_object

from .rows import DetailsPlugin


class TransactionChangesPlugin(DetailsPlugin):
    """Keeps the names of the classes that each transaction changed in ``transaction_changes``.

    ``Transaction.changes`` holds the rows, ``Transaction.entity_names`` the names.

    :ivar model_class: the class of the rows; also ``Model.__versioned__["transaction_changes"]``.
    """

    @override
    def build_classes(self, manager: Any, in_registry: registry) -> None:
        name = Column("entity_name", Unicode(255), primary_key=True)
        self._build(
            manager.transaction_cls,
            in_registry,
            "changes",
            "TransactionChanges",
            "transaction_changes",
            name,
            order_by=name,
        )

    @override
    def class_versioned(self, plan: ClassPlan) -> None:
        cls: Any = plan.mapper.class_
        # a dict of the class's own: that of a mixin is shared
        own = {**cls.__versioned__, RECORDED_BY_PLUGIN: self.model_class}
        type.__setattr__(cls, "__versioned__", own)

    @override
    def after_write(self, written: Written) -> None:
        if written.transaction_id is None:
            return
        plans = [p for p in written.manager.class_plans() if p.root in written.tables]
        if not plans:
            return
        table = self.model_class.__table__
        tx, name = table.c.transaction_id, table.c.entity_name

        def new_names() -> Any:
            known = table.alias()
            rows = [
                select(TX, literal(plan.mapper.class_.__name__, name.type)).where(
                    _changed(plan),
                    ~exists().where(
                        known.c.transaction_id == TX,
                        known.c.entity_name == plan.mapper.class_.__name__,
                    ),
                )
                for plan in plans
            ]
            return insert(table).from_select([tx, name], union_all(*rows))

        def names_of_nothing() -> Any:
            return delete(table).where(
                tx == TX,
                or_(*(and_(name == p.mapper.class_.__name__, ~_changed(p)) for p in plans)),
            )

        written.run(("changes", *plans), new_names)
        if written.amended:
            written.run(("no changes", *plans), names_of_nothing)
        identity = written.session.identity_key(
            written.manager.transaction_cls, written.transaction_id
        )
        transaction = written.session.identity_map.get(identity)
        if transaction is not None and "changes" in transaction.__dict__:
            written.session.expire(transaction, ["changes"])


def _changed(plan: ClassPlan) -> ColumnElement[bool]:
    """The transaction has a version of an object of just this class."""
    root, local = plan.root, plan.tables[-1]
    conditions: list[Any] = [local.tx == TX]
    discriminator: Any = plan.mapper.polymorphic_on
    if discriminator is not None and plan.mapper.polymorphic_identity is not None:
        discriminator = adapt(discriminator, version_parts(plan.tables))
        conditions.append(discriminator == plan.mapper.polymorphic_identity)
        if local is not root:
            same = same_object(root, root.version, local, local.version)
            conditions += [root.tx == TX, same]
    return exists().where(*conditions)
