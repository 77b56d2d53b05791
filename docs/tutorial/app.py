from datetime import datetime, timezone

from flask import Flask, abort, redirect, render_template, request, session, url_for
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, joinedload, selectinload
from werkzeug.wrappers import Response

from models import Author, Base, Ingredient, Recipe
from sqlalchemy_history import (
    Operation,
    as_of,
    transaction_class,
    version_class,
    versioning_manager,
)
from sqlalchemy_history.ext.flask import FlaskPlugin

# who it was: asked when a transaction row is written
versioning_manager.plugins.append(
    FlaskPlugin(current_user_id_factory=lambda: session.get("author_id"))
)
engine = create_engine("sqlite:///recipes.db")
Base.metadata.create_all(engine)
RecipeVersion = version_class(Recipe)
Transaction = transaction_class(Recipe)

app = Flask(__name__)
app.secret_key = "only for this tutorial"


@app.post("/sign-in")
def sign_in() -> Response:
    name = request.form["name"]
    with Session(engine) as db:
        author = db.scalars(select(Author).where(Author.name == name)).one_or_none()
        if author is None:
            author = Author(name=name)
            db.add(author)
            db.commit()
        session["author_id"] = author.id
    return redirect(url_for("book"))


@app.get("/")
def book() -> str:
    """All recipes, as they are or as they were."""
    at = request.args.get("at")
    if at:
        then = datetime.fromisoformat(at).replace(tzinfo=timezone.utc)
        statement = as_of(Recipe, then).order_by(RecipeVersion.title)
        statement = statement.options(selectinload(RecipeVersion.ingredients))
    else:
        statement = select(Recipe).order_by(Recipe.title)
        statement = statement.options(selectinload(Recipe.ingredients))
    deleted = (
        select(RecipeVersion)
        .where(RecipeVersion.operation_type == Operation.DELETE)
        .where(RecipeVersion.end_transaction_id.is_(None))
    )
    with Session(engine) as db:
        return render_template(
            "book.html", recipes=db.scalars(statement), deleted=db.scalars(deleted), at=at
        )


@app.post("/recipes")
def create() -> Response:
    with Session(engine) as db:
        recipe = Recipe(title=request.form["title"], steps="")
        db.add(recipe)
        db.commit()
        return redirect(url_for("show", recipe_id=recipe.id))


@app.get("/recipes/<int:recipe_id>")
def show(recipe_id: int) -> str:
    with Session(engine) as db:
        recipe = db.get(Recipe, recipe_id) or abort(404)
        return render_template("recipe.html", recipe=recipe)


@app.post("/recipes/<int:recipe_id>")
def save(recipe_id: int) -> Response:
    with Session(engine) as db:
        recipe = db.get(Recipe, recipe_id) or abort(404)
        recipe.title = request.form["title"]
        recipe.steps = request.form["steps"]
        # a line that is still there stays the same ingredient
        there = {ingredient.text: ingredient for ingredient in recipe.ingredients}
        lines = [line for line in request.form["ingredients"].splitlines() if line.strip()]
        recipe.ingredients = [there.get(line) or Ingredient(text=line) for line in lines]
        db.commit()
    return redirect(url_for("show", recipe_id=recipe_id))


@app.post("/recipes/<int:recipe_id>/delete")
def delete(recipe_id: int) -> Response:
    with Session(engine) as db:
        db.delete(db.get(Recipe, recipe_id) or abort(404))
        db.commit()
    return redirect(url_for("book"))


@app.get("/recipes/<int:recipe_id>/history")
def history(recipe_id: int) -> str:
    """Who changed what, when: three statements, however long the history is."""
    statement = (
        select(RecipeVersion)
        .where(RecipeVersion.id == recipe_id)
        .order_by(RecipeVersion.transaction_id)
        .options(
            selectinload(RecipeVersion.ingredients),
            joinedload(RecipeVersion.transaction).joinedload(Transaction.user),
        )
    )
    with Session(engine) as db:
        entries = []
        before: list[str] = []
        for version in db.scalars(statement):
            now = [ingredient.text for ingredient in version.ingredients]
            entries.append(
                {
                    "version": version,
                    "what": {0: "created", 1: "changed", 2: "deleted"}[version.operation_type],
                    "changeset": version.changeset,
                    "added": [text for text in now if text not in before],
                    "removed": [text for text in before if text not in now],
                }
            )
            before = now
        if not entries:
            abort(404)
        return render_template("history.html", entries=entries[::-1])


@app.post("/recipes/<int:recipe_id>/revert/<int:transaction_id>")
def revert(recipe_id: int, transaction_id: int) -> Response:
    with Session(engine) as db:
        version = RecipeVersion.version_at(db, recipe_id, transaction_id) or abort(404)
        version.revert(relations=["ingredients"])
        db.commit()
    return redirect(url_for("history", recipe_id=recipe_id))
