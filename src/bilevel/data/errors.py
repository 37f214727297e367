"""What is wrong with a table or with what was asked of it, in one line for the person who gave it."""

from bilevel.status import BilevelError


class DataError(BilevelError, ValueError):
    """A table, a column or a request about them cannot be used; the message says what to do."""


def listed(names, most: int = 8) -> str:
    """At most so many names, comma-separated, for a one-line message."""
    names = [str(name) for name in names]
    rest = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
