"""Options as they are given on the command line."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pdq_export.config.config import options_of
from pdq_export.errors import printable


def option_words(given: Mapping[str, Any]) -> Iterator[str]:
    """The words that give these options, by name, quoted for a shell; what is None, and no option, is left out."""
    known = options_of()
    for name, value in given.items():
        one = known.get(name)
        if one is None or value is None:
            continue
        if not one.declared.flag:
            yield from ("--set", word(f"{name}={_text(value)}"))
        elif one.kind is bool:
            off = one.flag.replace("--no-", "--", 1) if one.flag.startswith("--no-") else f"--no-{one.flag[2:]}"
            yield one.flag if value else off
        else:
            for item in value if isinstance(value, list | tuple) else (value,):
                yield from (one.flag, word(_text(item)))


def word(text: str) -> str:
    """One word for a shell, of characters that a terminal shows."""
    return shlex.quote(printable(text))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
