"""ASGI (Starlette, FastAPI, Litestar, ...): each transaction of a request knows where it came from.

::

    app.add_middleware(TransactionContextMiddleware, user_id=lambda scope: scope["user"].id)

A pure ASGI middleware that enters a :class:`~sqlalchemy_history.transaction_context` around each
request; it needs no framework. Endpoints that run in a thread see it too. The values are computed
from the ``scope`` when a transaction row is written, so what authentication puts there during the
request is found.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from sqlalchemy_history.context import transaction_context

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def client_address(scope: Scope) -> str | None:
    """The address of the client, None where the server does not know it."""
    client = scope.get("client")
    return client[0] if client else None


class TransactionContextMiddleware:
    """Say of each transaction which request made it.

    :param app: the application, or the next middleware.
    :param remote_addr: from the scope to the address; None leaves it to somebody else.
    :param values: further columns of the Transaction class, each with a function of the scope.
    """

    def __init__(
        self,
        app: ASGIApp,
        remote_addr: Callable[[Scope], Any] | None = client_address,
        **values: Callable[[Scope], Any],
    ) -> None:
        self.app = app
        self._values = values
        if remote_addr is not None:
            self._values = {"remote_addr": remote_addr, **values}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request inside of the context; whatever else there is, as it is."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        values = {name: partial(compute, scope) for name, compute in self._values.items()}
        async with transaction_context(**values):
            await self.app(scope, receive, send)
