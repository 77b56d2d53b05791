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

from fastapi import Body, Depends, FastAPI, Header, Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, joinedload, mapped_column
from sqlalchemy.pool import StaticPool

from sqlalchemy_history import make_versioned, transaction_class, version_class
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
    TransactionContextMiddleware, user_id=lambda scope: scope["state"].get("user_id")
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
        {"text": v.text, "by": v.transaction.user.name, "from": v.transaction.remote_addr}
        for v in found
    ]


async def main() -> None:
    import httpx  # noqa: PLC0415 - the server needs none

    async with lifespan(app):
        for name, address, text in (
            ("ann", "10.0.0.1", "Hello"),
            ("bob", "10.0.0.2", "Hello, world"),
        ):
            transport = httpx.ASGITransport(app=app, client=(address, 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://wiki") as client:
                saved = await client.put("/pages/Home", json=text, headers={"x-user": name})
                saved.raise_for_status()
                found = (await client.get("/pages/Home/history")).json()
    for version in found:
        print(f"{version['by']} at {version['from']}: {version['text']}")


if __name__ == "__main__":
    asyncio.run(main())
