r"""Writes that cannot be seen: SQL text, and constructs that hide an INSERT, UPDATE or DELETE.

>>> written_tables('UPDATE "article" SET name = \'update tag\' WHERE id = 1')
frozenset({'article'})
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

_NAME: Final = r'(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|[\w$]+)'
_IGNORED: Final = r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/"
_WRITES: Final = rf"""\b(?:
        insert\s+(?:\w+\s+){{0,2}}into | replace\s+(?:\w+\s+)?into | merge\s+into
        | (?<!for\s)(?<!key\s)(?<!do\s)update(?:\s+or\s+\w+|\s+low_priority|\s+ignore)*
        | delete\s+(?:\w+\s+)*?from | truncate(?:\s+table)? | copy(?=\s+[^;]*\sfrom\s)
    )\s+(?:only\s+)?({_NAME}(?:\s*\.\s*{_NAME})*)"""


@lru_cache(maxsize=1000)
def written_tables(sql: str) -> frozenset[str]:
    """Names of the tables, in lower case and without their schema, that SQL text seems to write."""
    # compiled when the first text comes, and kept by ``re``
    sql = re.sub(_IGNORED, " ", sql, flags=re.DOTALL)
    names = re.findall(_WRITES, sql, re.IGNORECASE | re.VERBOSE)
    return frozenset(re.findall(_NAME, name)[-1].strip('"`[]').lower() for name in names)


def hidden_writes(compiled: Any) -> list[Any]:
    """The tables that a compiled statement writes in its WITH clause."""
    ctes = getattr(compiled, "ctes", None)
    return [cte.element.table for cte in ctes or () if getattr(cte.element, "is_dml", False)]
