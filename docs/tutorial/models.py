from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlalchemy_history import make_versioned

make_versioned(user_cls="Author")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={"fk": "fk_%(table_name)s_%(column_0_name)s"})


class Author(Base):
    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Recipe(Base):
    __tablename__ = "recipe"
    __versioned__ = {"track_relations": ["ingredients"]}

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    steps: Mapped[str]
    ingredients: Mapped[list["Ingredient"]] = relationship(
        cascade="all, delete-orphan", order_by="Ingredient.id"
    )


class Ingredient(Base):
    __tablename__ = "ingredient"
    __versioned__ = {}

    id: Mapped[int] = mapped_column(primary_key=True)
    recipe_id: Mapped[int] = mapped_column(ForeignKey("recipe.id"))
    text: Mapped[str]
