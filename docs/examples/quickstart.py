"""The main job in a minute: an article changes, and its past stays at hand.

Runs on SQLite in memory and needs nothing but SQLAlchemy and sqlalchemy_history:

    python docs/examples/quickstart.py
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_history import Operation, as_of, make_versioned, version_class

make_versioned(user_cls=None)


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    __versioned__ = {}

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    text: Mapped[str]


OPERATIONS = {Operation.INSERT: "insert", Operation.UPDATE: "update", Operation.DELETE: "delete"}


def show(versions: Iterable[Any]) -> None:
    for version in versions:
        operation = OPERATIONS[version.operation_type]
        content = f"{version.title!r}: {version.text!r}"
        print(f"  transaction {version.transaction_id}  {operation}  {content}")


def main() -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    ArticleVersion = version_class(Article)
    with Session(engine) as session:
        article = Article(title="Bees", text="Bees fly.")
        session.add(article)
        session.commit()
        article.text = "Bees fly and dance."
        session.commit()
        article.title = "Honey bees"
        session.commit()

        print("Versions")
        show(article.versions)

        print("Changeset of the last one")
        latest = article.versions[2]
        for name, (old, new) in latest.changeset.items():
            print(f"  {name}: {old!r} -> {new!r}")

        print("As of the first transaction")
        first = article.versions[0]
        show(session.scalars(as_of(Article, first.transaction_id)))

        print("Reverted to the first version")
        first.revert()
        session.commit()
        print(f"  {article.title!r}: {article.text!r}")

        print("Deleted, and brought back")
        session.delete(article)
        session.commit()
        first.revert()
        session.commit()
        history = session.scalars(select(ArticleVersion).order_by(ArticleVersion.transaction_id))
        show(history.all()[-2:])


if __name__ == "__main__":
    main()
