"""A wiki in FastAPI that knows who changed what: an async session and an ASGI middleware.

pip install fastapi httpx "sqlalchemy[asyncio]" aiosqlite
python docs/examples/fastapi_app.py                  # a short conversation with it
fastapi dev docs/examples/fastapi_app.py             # or serve it
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header, HTTPException, Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, joinedload, mapped_column
from sqlalchemy.pool import StaticPool

from sqlalchemy_history import as_of, make_versioned, transaction_class, version_class
from sqlalchemy_history.ext.asgi import TransactionContextMiddleware

make_versioned(user_cls="User")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user_account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Page(Base):
    __tablename__ = "page"
    __versioned__: dict[str, Any] = {}

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    text: Mapped[str]


engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
open_session = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with open_session.begin() as session:
        session.add_all([User(name="ann"), User(name="bob")])
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
# asked when a transaction is written: by then current_user() has run
app.add_middleware(
    TransactionContextMiddleware, user_id=lambda scope: scope.get("state", {}).get("user_id")
)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with open_session() as session:
        yield session


Database = Annotated[AsyncSession, Depends(get_session)]


async def current_user(
    request: Request, session: Database, x_user: Annotated[str, Header()]
) -> User:
    user = (await session.scalars(select(User).where(User.name == x_user))).one()
    request.state.user_id = user.id
    return user


@app.put("/pages/{title}", dependencies=[Depends(current_user)])
async def save(title: str, text: Annotated[str, Body()], session: Database) -> dict[str, str]:
    page = (await session.scalars(select(Page).where(Page.title == title))).one_or_none()
    if page is None:
        page = Page(title=title)
        session.add(page)
    page.text = text
    await session.commit()
    return {"saved": title}


@app.get("/pages/{title}")
async def show(title: str, session: Database, at: int | None = None) -> dict[str, str]:
    """Show the page as it is, or with ``?at=`` as a transaction left it."""
    statement = select(Page) if at is None else as_of(Page, at)
    page = (await session.scalars(statement.filter_by(title=title))).one_or_none()
    if page is None:
        raise HTTPException(404)
    return {"text": page.text}


@app.post("/pages/{title}/revert", dependencies=[Depends(current_user)])
async def revert(title: str, to: int, session: Database) -> dict[str, str]:
    version = (await session.scalars(as_of(Page, to).filter_by(title=title))).one_or_none()
    if version is None:
        raise HTTPException(404)
    await version.arevert()
    await session.commit()
    return {"saved": title}


@app.get("/pages/{title}/history")
async def history(title: str, session: Database) -> list[dict[str, Any]]:
    version, transaction = version_class(Page), transaction_class(Page)
    found = await session.scalars(
        select(version)
        .where(version.title == title)
        .order_by(version.transaction_id)
        .options(joinedload(version.transaction).joinedload(transaction.user))
    )
    return [
        {
            "transaction": v.transaction_id,
            "text": v.text,
            "by": v.transaction.user and v.transaction.user.name,  # nobody may have been known
            "from": v.transaction.remote_addr,
        }
        for v in found
    ]


async def main() -> None:
    import httpx  # noqa: PLC0415 - the server needs none

    def client_of(name: str, address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=app, client=(address, 1234))
        headers = {"x-user": name}
        return httpx.AsyncClient(transport=transport, base_url="http://wiki", headers=headers)

    async with (
        lifespan(app),
        client_of("ann", "10.0.0.1") as ann,
        client_of("bob", "10.0.0.2") as bob,
    ):
        (await ann.put("/pages/Home", json="Hello")).raise_for_status()
        (await bob.put("/pages/Home", json="Buy pills")).raise_for_status()
        first = (await ann.get("/pages/Home/history")).json()[0]["transaction"]
        print(f"at first: {(await ann.get(f'/pages/Home?at={first}')).json()['text']}")
        (await ann.post(f"/pages/Home/revert?to={first}")).raise_for_status()
        found = (await ann.get("/pages/Home/history")).json()
    for version in found:
        print(f"{version['by']} at {version['from']}: {version['text']}")


if __name__ == "__main__":
    asyncio.run(main())
