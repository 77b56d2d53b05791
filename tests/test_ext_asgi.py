"""Laws of the ASGI middleware, with FastAPI, Starlette, no framework, and an HTTP client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy.orm import Mapped, configure_mappers, mapped_column
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sqlalchemy_history import transaction_context
from sqlalchemy_history.context import current_context
from sqlalchemy_history.ext.asgi import TransactionContextMiddleware
from sqlalchemy_history.transaction import collect_values
from test_quickstart import run


def values() -> dict[str, Any]:
    """What a transaction row written here and now would get."""
    return {name: ask() if callable(ask) else ask for name, ask in current_context().items()}


def fetch(run_async: Any, app: Any, *paths: str, client: Any = ("10.0.0.1", 123)) -> list[Any]:
    async def main() -> Any:
        transport = httpx.ASGITransport(app=app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            answers = await asyncio.gather(*(http.get(path) for path in paths))
        return [answer.raise_for_status().json() for answer in answers]

    return run_async(main)


def test_fastapi_endpoints_of_both_kinds(run_async: Any) -> None:
    """Coroutine endpoints and those that run in a thread see the same; requests do not mix."""
    app = FastAPI()
    app.add_middleware(
        TransactionContextMiddleware, user_id=lambda scope: scope["state"].get("user_id")
    )

    @app.get("/async/{number}")
    async def asynchronous(number: int, request: Request) -> Any:
        request.state.user_id = number
        await asyncio.sleep(0)
        return values()

    @app.get("/sync/{number}")
    def synchronous(number: int, request: Request) -> Any:
        request.state.user_id = number
        return values()

    paths = [f"/{kind}/{number}" for number in range(5) for kind in ("async", "sync")]
    assert fetch(run_async, app, *paths) == [
        {"remote_addr": "10.0.0.1", "user_id": number} for number in range(5) for _ in range(2)
    ]
    assert dict(current_context()) == {}


def test_litestar_handlers_of_both_kinds(run_async: Any) -> None:
    """Litestar takes the middleware as it is, and threads of its see the context too."""
    litestar = pytest.importorskip("litestar")

    @litestar.get("/async/{number:int}")
    async def asynchronous(request: litestar.Request) -> Any:
        request.state.user_id = request.path_params["number"]
        await asyncio.sleep(0)
        return values()

    @litestar.get("/sync/{number:int}", sync_to_thread=True)
    def synchronous(request: litestar.Request) -> Any:
        request.state.user_id = request.path_params["number"]
        return values()

    for handler in (asynchronous, synchronous):
        # the annotations are text, and name what only this function knows
        handler.signature_namespace["litestar"] = litestar
    middleware = litestar.middleware.DefineMiddleware(
        TransactionContextMiddleware, user_id=lambda scope: scope["state"].get("user_id")
    )
    app = litestar.Litestar([asynchronous, synchronous], middleware=[middleware])
    assert fetch(run_async, app, "/async/3", "/sync/4") == [
        {"remote_addr": "10.0.0.1", "user_id": number} for number in (3, 4)
    ]


def test_starlette_and_mounted_applications(run_async: Any) -> None:
    """What is mounted below the middleware is inside of it."""

    async def endpoint(request: Any) -> Any:
        return JSONResponse(values())

    inner = Starlette(routes=[Route("/", endpoint)])
    app = Starlette(routes=[Mount("/inner", inner)])
    app.add_middleware(TransactionContextMiddleware)
    assert fetch(run_async, app, "/inner/") == [{"remote_addr": "10.0.0.1"}]


def test_address_that_is_not_known_or_not_wanted(run_async: Any) -> None:
    """A server that knows no address gives None; remote_addr=None leaves the value to others."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse(values())(scope, receive, send)

    assert fetch(run_async, TransactionContextMiddleware(app), "/", client=None) == [
        {"remote_addr": None}
    ]
    with transaction_context(remote_addr="job"):
        silent = TransactionContextMiddleware(app, remote_addr=None)
        assert fetch(run_async, silent, "/") == [{"remote_addr": "job"}]


def test_lifespan_is_passed_through(run_async: Any) -> None:
    """What is no request has no context."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], dict(current_context())))

    run_async(TransactionContextMiddleware(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [("lifespan", {})]


@pytest.mark.backends("sqlite")
def test_values_reach_the_transaction_row(run_async: Any, versioning: Any, Base: Any) -> None:
    """The functions are asked for the values of a transaction row."""

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True)

    configure_mappers()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        row = collect_values(versioning.transaction_cls, [("context", current_context())])
        await JSONResponse(row)(scope, receive, send)

    assert fetch(run_async, TransactionContextMiddleware(app), "/") == [{"remote_addr": "10.0.0.1"}]


def test_example_prints_who_wrote_what() -> None:
    """The example application runs with one command."""
    assert run("docs/examples/fastapi_app.py") == [
        "at first: Hello",
        "ann at 10.0.0.1: Hello",
        "bob at 10.0.0.2: Buy pills",
        "ann at 10.0.0.1: Hello",
    ]
