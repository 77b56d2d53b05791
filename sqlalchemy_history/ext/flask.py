"""Flask: each transaction of a request knows the user and the address it came from.

::

    make_versioned(plugins=[FlaskPlugin()])        # before the models

The user is that of Flask-Login, where that is installed and set up; give
``current_user_id_factory`` for any other way to know it. Both are asked when a transaction row is
written, so it does not matter when in the request somebody logs in. Outside of a request the plugin
says nothing: command-line jobs use :class:`~sqlalchemy_history.transaction_context`, which also
wins inside of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from sqlalchemy_history.hooks import Plugin

try:
    from flask import current_app, has_request_context, request
except ImportError as error:
    raise ImportError(
        "sqlalchemy_history.ext.flask needs Flask: pip install 'sqlalchemy-history-next[flask]'"
    ) from error

try:
    from flask_login import current_user  # type: ignore[import-untyped]
except ImportError:
    current_user = None

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, registry

    from sqlalchemy_history.manager import VersioningManager


class FlaskPlugin(Plugin):
    """Takes ``user_id`` and ``remote_addr`` of transactions from the request.

    :param current_user_id_factory: returns the user's id, None for nobody; by default that of
        Flask-Login.
    :param remote_addr_factory: returns the address; by default ``request.remote_addr``.
    """

    def __init__(
        self,
        current_user_id_factory: Callable[[], Any] | None = None,
        remote_addr_factory: Callable[[], str | None] | None = None,
    ) -> None:
        self._factories: dict[str, Callable[[], Any]] = {
            "user_id": current_user_id_factory or _login_user_id,
            "remote_addr": remote_addr_factory or _remote_addr,
        }
        self._wanted: dict[str, Callable[[], Any]] = {}

    @override
    def build_classes(self, manager: VersioningManager, in_registry: registry) -> None:
        # what the Transaction class has no column for is not asked
        columns = manager.transaction_cls.__mapper__.columns
        self._wanted = {name: ask for name, ask in self._factories.items() if name in columns}

    @override
    def transaction_values(self, session: Session) -> Mapping[str, Any]:
        if not has_request_context():
            return {}
        return {name: ask() for name, ask in self._wanted.items()}


def _remote_addr() -> str | None:
    return request.remote_addr


def _login_user_id() -> Any:
    """The primary key of Flask-Login's user; what ``get_id()`` says of one that is not mapped."""
    if current_user is None or not hasattr(current_app, "login_manager"):
        return None
    user: Any = current_user._get_current_object()
    if user is None or not user.is_authenticated:
        return None
    state = getattr(user, "_sa_instance_state", None)
    return user.get_id() if state is None or state.identity is None else state.identity[0]
