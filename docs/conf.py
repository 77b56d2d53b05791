"""Sphinx configuration: `tox -e docs` builds with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout, installed or not

import sqlalchemy_history

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "sqlalchemy_history"
author = "the sqlalchemy_history authors"
copyright = "2026, the sqlalchemy_history authors"  # noqa: A001
release = version = sqlalchemy_history.__version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build", "examples"]

html_theme = "furo"
html_title = f"sqlalchemy_history {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

# Names that other projects document. Their inventories are not fetched: a build needs no network.
_elsewhere = "|".join(["sqlalchemy", "sa", "_orm", *sorted(sys.stdlib_module_names)])
_bare = (
    "Any|Callable|Iterable|Iterator|Mapping|Sequence|Collection|ClassVar|Self|Literal.*|optional"
    "|Select|Session|AsyncSession|Engine|AsyncEngine|Connection|AsyncConnection|Mapper|Table|Column|MetaData"
    "|DeclarativeBase|registry"
)
nitpick_ignore = [
    ("py:class", "ColumnElement"),
    ("py:class", "FromClause"),
    ("py:class", "ASGIApp"),
    ("py:class", "Scope"),
    ("py:class", "sqlalchemy_history.plan.TablePlan"),
    ("py:class", "sqlalchemy_history.query.AwaitableAttributes"),
]
# what stands for a type in signatures
_type_variables = r"(sqlalchemy_history\.\w+\.)?(Moment|Selectable|Statement|V|_Select)"
nitpick_ignore_regex = [
    (r"py:.*", rf"({_elsewhere})(\..*)?"),
    (r"py:.*", rf"({_bare})"),
    (r"py:class", _type_variables),
]


def find_where_it_is_documented(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Resolve `sqlalchemy_history.query.as_of` and `as_of` to `sqlalchemy_history.as_of`.

    The reference documents public names where users import them from, not where they are defined.
    """
    name = node["reftarget"].rpartition(".")[2]
    documented = f"sqlalchemy_history.{name}"
    domain = env.domains.python_domain
    if documented not in domain.objects or node["reftarget"] == documented:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", documented, node, content)


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", find_where_it_is_documented)
