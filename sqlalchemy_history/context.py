"""Who and why, and whether at all: what the code around a session says about its history.

>>> with transaction_context(remote_addr="10.0.0.7"):
...     dict(current_context())
{'remote_addr': '10.0.0.7'}
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]

#: where ``session.info`` holds values for the transactions of that session
CONTEXT_KEY: Final = "transaction_context"

_DISABLED_KEY: Final = "sqlalchemy_history.disabled"


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Frame(NamedTuple):
    values: Mapping[str, Any]
    outer: _Frame | None


_context: ContextVar[_Frame] = ContextVar(
    "sqlalchemy_history_context",
    default=_Frame(MappingProxyType({}), None),  # noqa: B039 - a NamedTuple of a read-only view
)


def current_context() -> Mapping[str, Any]:
    """What the :class:`transaction_context` blocks around this code say."""
    return _context.get().values


class transaction_context:  # noqa: N801
    """Say who and why: columns of the transaction row, for every transaction made inside.

    It can be used with ``with`` and ``async with``, and as a decorator of functions and coroutine
    functions. Blocks may be nested: an inner one adds to the outer one, and its values win. It is
    kept in a context variable (:mod:`contextvars`): other threads do not see it, and a task inherits
    what held when it began.

    Values for one session are kept in ``session.info["transaction_context"]``, a dict. A block
    around the code wins over them.

    :param values: values by the names of column attributes of the Transaction class. A function as
        value is called when a transaction row is written. A name that is no column raises
        :class:`~sqlalchemy_history.ImproperlyConfigured` at that time.

    >>> @transaction_context(remote_addr="cron")
    ... def job():
    ...     return current_context()["remote_addr"]
    >>> job()
    'cron'
    """

    def __init__(self, **values: Any) -> None:
        self._values = values

    # What was there before is kept in the context itself, so that one object may be entered by
    # several threads, and left in another context than it was entered in, as fixtures and
    # dependencies that yield are.

    def __enter__(self) -> None:
        outer = _context.get()
        _context.set(_Frame(MappingProxyType({**outer.values, **self._values}), outer))

    def __exit__(self, *error: object) -> None:
        frame = _context.get()
        if frame.outer is not None:
            _context.set(frame.outer)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__(*error)

    def __call__(self, func: _Function) -> _Function:
        """Decorate ``func``.

        :raises TypeError: for a generator function and a class: what they are about runs after the
            call has returned.
        """
        if any(is_kind(func) for is_kind in _RUN_LATER):
            raise TypeError(
                f"transaction_context cannot decorate {func!r}, a generator function or a class; "
                f"write 'with transaction_context(...):' inside of it"
            )

        async def awaited(coroutine: Any) -> Any:
            with self:
                return await coroutine

        @functools.wraps(func)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = func(*args, **kwargs)
            # of a function that only passes a coroutine on, as other decorators make them
            return awaited(result) if inspect.iscoroutine(result) else result

        @functools.wraps(func)
        async def call_coroutine_function(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await func(*args, **kwargs)

        wrapped = call_coroutine_function if inspect.iscoroutinefunction(func) else call
        return cast("_Function", wrapped)


_RUN_LATER: Final = (inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.isclass)


class versioning_disabled:  # noqa: N801
    """Record nothing of what ``session`` does in this block.

    ``with`` for a Session, ``async with`` for an AsyncSession.

    What was changed before is flushed and recorded first; what is changed inside is flushed at the
    end, unless an exception leaves the block. Other sessions are not concerned. The history then
    has a gap: the next recorded change of a row shows these changes as its own.

    >>> from sqlalchemy.orm import Session
    >>> session = Session()
    >>> with versioning_disabled(session):
    ...     is_disabled(session)
    True
    >>> is_disabled(session)
    False
    """

    def __init__(self, session: AnySession) -> None:
        self._session: Any = session

    def __enter__(self) -> None:
        if hasattr(self._session, "run_sync"):
            raise TypeError("an AsyncSession needs `async with versioning_disabled(session)`")
        self._session.flush()
        self._count(+1)

    def __exit__(self, error: type[BaseException] | None, *more: object) -> None:
        try:
            if error is None:
                self._session.flush()
        finally:
            self._count(-1)

    async def __aenter__(self) -> None:
        await self._session.flush()
        self._count(+1)

    async def __aexit__(self, error: type[BaseException] | None, *more: object) -> None:
        try:
            if error is None:
                await self._session.flush()
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        info: dict[Any, Any] = self._session.info
        depth = info.get(_DISABLED_KEY, 0) + step
        if depth:
            info[_DISABLED_KEY] = depth
        else:
            info.pop(_DISABLED_KEY, None)


def is_disabled(session: AnySession) -> bool:
    """Whether a :class:`versioning_disabled` block of the session is active."""
    return _DISABLED_KEY in session.info
