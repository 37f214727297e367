"""Running what may raise anything, because users' functions run inside."""

from collections.abc import Callable
from typing import TypeVar

from bilevel.status import BilevelError

T = TypeVar("T")


def attempt(make: Callable[[], T]) -> T | str:
    """What ``make()`` returns, or the error it raised in words."""
    try:
        return make()
    except Exception as error:  # an error of one method must not end the others
        return in_words(error)


def in_words(error: BaseException) -> str:
    """The kind of an error and the first line of its message; ours speak for themselves."""
    message = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, BilevelError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
