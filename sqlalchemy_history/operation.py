"""Operation types, and how two of them in one database transaction become one.

>>> merge(Operation.INSERT, Operation.UPDATE) == Operation.INSERT
True
>>> merge(Operation.INSERT, Operation.DELETE) is None
True
"""

from __future__ import annotations

from typing import Final


class Operation:
    """What made a version: ``INSERT`` 0, ``UPDATE`` 1, ``DELETE`` 2; plain integers, as they are stored."""

    INSERT: Final = 0
    UPDATE: Final = 1
    DELETE: Final = 2


#: (what this transaction already recorded, what happens now) -> what it amounts to; None: nothing.
#: A second INSERT, or an UPDATE after a DELETE, is a row that came back by a way that nobody saw.
MERGE: Final[dict[tuple[int, int], int | None]] = {
    (Operation.INSERT, Operation.INSERT): Operation.INSERT,
    (Operation.INSERT, Operation.UPDATE): Operation.INSERT,
    (Operation.INSERT, Operation.DELETE): None,
    (Operation.UPDATE, Operation.INSERT): Operation.UPDATE,
    (Operation.UPDATE, Operation.UPDATE): Operation.UPDATE,
    (Operation.UPDATE, Operation.DELETE): Operation.DELETE,
    (Operation.DELETE, Operation.INSERT): Operation.UPDATE,
    (Operation.DELETE, Operation.UPDATE): Operation.UPDATE,
    (Operation.DELETE, Operation.DELETE): Operation.DELETE,
}


def merge(before: int, now: int) -> int | None:
    """The net operation of ``before`` and then ``now`` on one row in one transaction."""
    return MERGE[before, now]
