"""What differs between two states, and who is to blame for the present one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sqlalchemy_history import (
    AttributeChange,
    ReverterException,
    VersioningError,
    as_of,
    blame,
    diff,
    version_class,
)
from tests.test_relationships import declare, models, names, session, tell

__all__ = ["models", "session"]

pytestmark = pytest.mark.backends("sqlite")


class TestDiff:
    def test_versions_of_any_distance(self, session: Any, models: SimpleNamespace) -> None:
        """Two versions, in either order and however far apart, differ in typed values."""
        article = tell(session, models)
        one, _, three = article.versions
        found = diff(one, three)
        assert found.attributes == (
            AttributeChange(name="name", old="one", new="three"),
            AttributeChange(name="author_id", old=1, new=None),
        )
        assert diff(three, one)["name"] == AttributeChange(name="name", old="three", new="one")
        assert "name" in found
        assert "id" not in found
        assert str(found) == "name: 'one' -> 'three'\nauthor_id: 1 -> None"
        assert not diff(one, one)
        with pytest.raises(KeyError):
            found["id"]
        with pytest.raises(AttributeError):
            found.attributes = ()

    def test_a_version_and_the_live_object(self, session: Any, models: SimpleNamespace) -> None:
        """The live object counts as it is now, what is not flushed included."""
        article = tell(session, models)
        article.name = "four"
        with session.no_autoflush:
            found = diff(article.versions[2], article)
        assert str(found) == "name: 'three' -> 'four'"

    def test_a_deleted_object_has_no_values(self, session: Any, models: SimpleNamespace) -> None:
        """A DELETE differs from what was there in everything, in either direction."""
        author = models.Author(id=1, name="a")
        session.add(author)
        session.commit()
        first = author.versions[0]
        session.delete(author)
        session.commit()
        deletion = first.next
        assert str(diff(first, deletion)) == "id: 1 -> None\nname: 'a' -> None"
        assert str(diff(deletion, first)) == "id: None -> 1\nname: None -> 'a'"
        assert not diff(deletion, author)

    def test_relations(self, session: Any, models: SimpleNamespace) -> None:
        """Relations are compared by identity: what was added, removed, and what has changed."""
        article = tell(session, models)
        one, two, three = article.versions
        paths = ["comments", "tags", "author", "cover", "countries"]
        found = diff(one, three, relations=paths)
        comments = found["comments"]
        assert names(comments.added, "text") == ["third"]
        assert names(comments.removed, "text") == ["first"]
        assert [str(change) for change in comments.changed] == ["text: 'second' -> 'changed'"]
        assert names(found["tags"].removed) == ["red"]
        assert [str(change) for change in found["tags"].changed] == ["name: 'blue' -> 'navy'"]
        assert names(found["author"].removed) == ["Ada"]
        assert [str(change) for change in found["cover"].changed] == ["file: 'a.png' -> 'b.png'"]
        assert names(found["countries"].added) == ["Spain"]
        assert [change.name for change in found.relations] == paths
        between = diff(one, two, relations=["author"])
        assert str(between["author"].changed[0]) == "name: 'Ada' -> 'Eve'"
        assert not diff(two, two, relations=paths)
        tx = three.transaction_id
        assert str(diff(two, three, relations=["comments", "tags"])) == (
            "name: 'two' -> 'three'\n"
            "author_id: 1 -> None\n"
            f"comments: + CommentVersion(id=3, transaction_id={tx}, operation_type=0)\n"
            f"tags: TagVersion(id=2, transaction_id={tx}, operation_type=1)\n"
            "    name: 'blue' -> 'navy'"
        )

    def test_relations_of_the_live_object_and_deep_paths(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """A version compares to the live graph, along dotted paths, at one moment throughout."""
        article = tell(session, models)
        assert not diff(article.versions[2], article, relations=["tags.articles", "comments"])
        article.comments[1].text = "new"
        found = diff(article.versions[2], article, relations=["tags.articles.comments"])
        below = found["tags"].changed[0]["articles"].changed[0]["comments"]
        assert str(below.changed[0]) == "text: 'third' -> 'new'"
        (then,) = session.scalars(as_of(models.Article, article.versions[1]))
        assert str(diff(article.versions[1], then, relations=["comments"])) == ""

    def test_what_cannot_be_compared(self, session: Any, models: SimpleNamespace) -> None:
        """Objects without a common history, and unknown relations, are refused."""
        article = tell(session, models)
        with pytest.raises(VersioningError, match="ArticleVersion and a Author cannot be compared"):
            diff(article.versions[0], models.Author())
        with pytest.raises(ReverterException, match="no relationship 'tag'"):
            diff(article.versions[0], article, relations=["tag"])


class TestBlame:
    def test_each_attribute_has_its_transaction(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """`blame` names the transaction that gave each attribute its present value."""
        article = tell(session, models)
        article.author_id = 1
        session.commit()
        one, _, three, four = (v.transaction for v in article.versions)
        assert article.id
        with statements(engine) as log:
            found = blame(session, article)
        assert len(log) <= 2
        assert found == {"id": one, "name": three, "author_id": four}
        assert blame(session, article.versions[0]) == {"id": one, "name": one, "author_id": one}

    def test_a_new_life_starts_anew(self, session: Any, models: SimpleNamespace) -> None:
        """After a DELETE, all that is there is of the transaction that brought it back."""
        author = models.Author(id=1, name="a")
        session.add(author)
        session.commit()
        first = author.versions[0]
        session.delete(author)
        session.commit()
        author = first.revert().object
        session.commit()
        back = author.versions[2].transaction
        assert set(blame(session, author).values()) == {back}
        assert set(blame(session, author)) == {"id", "name", "country_id"}


class TestAsync:
    @pytest.mark.backends("sqlite", "postgresql", "mariadb")
    def test_by_run_sync(
        self, versioning: Any, Base: Any, open_async_session: Any, run_async: Any
    ) -> None:
        """`diff` and `blame` run in an async session through `run_sync`."""
        models = declare(Base)

        async def main() -> None:
            session = await open_async_session()
            article = await session.run_sync(tell, models)
            one, _, three = (await session.scalars(article.versions.select())).all()
            found = await session.run_sync(lambda s: diff(one, three, relations=["comments"]))
            assert names(found["comments"].added, "text") == ["third"]
            blamed = await session.run_sync(blame, three)
            assert blamed["name"].id == three.transaction_id
            assert version_class(models.Article) is type(one)

        run_async(main)
