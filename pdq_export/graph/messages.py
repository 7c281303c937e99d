"""Words for other people's exceptions."""


def essential_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, at most 200 characters."""
    lines = (line.strip() for line in str(error).splitlines())
    telling = (line for line in lines if line and not line.startswith("==>"))
    return next(telling, type(error).__name__)[:200].rstrip(".")
