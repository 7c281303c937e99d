"""Words that several messages share."""

from collections.abc import Sequence


def first_few(texts: Sequence[str]) -> str:
    """Three of them at most, with what says that there are more."""
    return ", ".join([*texts[:3], *(["..."] if len(texts) > 3 else [])])


def essential_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, without context, at most 200 characters."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = (line for line in lines if line and not line.startswith("==>"))
    return next(telling, type(error).__name__)[:200].rstrip(".")
