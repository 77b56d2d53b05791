"""The errors of this package, one small tree.

::

    VersioningError
    +-- ImproperlyConfigured     a mapping or an option that cannot work; raised when mappers configure
    +-- ClassNotVersioned        a class without history was asked for it
    +-- TableNotVersioned        a table without history was asked for it
    +-- MissingContext           a versioned flush without what ``require_context`` asks for
    +-- UntrackedWrite           a write that cannot be recorded, where the option says to refuse it
    +-- NoChangesAttribute       ``Transaction.entity_names`` without the plugin that records them
    +-- ReverterException        a revert that cannot be carried out

Every message names the class, table, column or option it is about and says what to do.
"""

from __future__ import annotations

from typing import Any


class VersioningError(Exception):
    """Base of all errors that this package raises on purpose."""


class ImproperlyConfigured(VersioningError):
    """A mapping, an option or a name that versioning cannot work with."""


class ClassNotVersioned(VersioningError):
    """The class has no history, or no version class: see what the message says."""


class TableNotVersioned(VersioningError):
    """The table belongs to no versioned class."""


class MissingContext(VersioningError):
    """Nobody said who or why, and the option ``require_context`` wants to know."""


class UntrackedWrite(VersioningError):
    """A write that cannot be recorded, refused by the option ``untracked="raise"``."""


class UntrackedWriteWarning(UserWarning):
    """A write that cannot be recorded; see the option ``untracked``."""


class NoChangesAttribute(VersioningError):
    """``Transaction.entity_names`` needs ``TransactionChangesPlugin``."""


class ReverterException(VersioningError):
    """A revert cannot be carried out in the way that was asked for."""


def refuse_async(session: Any, function: str) -> None:
    """Say what to do with an AsyncSession, whose methods return coroutines.

    :raises TypeError: if ``session`` is one.
    """
    if hasattr(session, "run_sync"):
        raise TypeError(
            f"{function}() takes a Session; with an AsyncSession: "
            f"await session.run_sync({function}, ...)"
        )
