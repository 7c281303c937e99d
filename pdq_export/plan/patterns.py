"""Regular expressions over node names: the names come from files of strangers, and matching must end in time."""

import difflib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from pdq_export.errors import OptionError

MATCH_SECONDS = 10.0
LONGEST_PATTERN = 1000
# With one of these at most, and names of moderate length, backtracking cannot take long.
_BRANCHING = re.compile(r"[*+?|}]")
_LONG_NAME = 1000
_LISTED = {
    "layers": "all layers",
    "nodes": "the layers; other nodes are called as in the file",
}
_MATCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
json.dump([name for name in names if re.search(pattern, name)], sys.stdout)
"""


def check_pattern(pattern: str, option: str) -> None:
    """Raise OptionError if ``pattern`` is no regular expression of Python's `re`.

    The message names ``option``.
    """
    where = f"{option} {_shorten(pattern)!r}"
    if not pattern or len(pattern) > LONGEST_PATTERN:
        raise OptionError(f"{where}: has {len(pattern)} characters; expected a regular expression of 1 to 1000")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise OptionError(
            f"{where}: is not a regular expression ({error}); expected one over node names, for example '/layer1/'; "
            "escape special characters with a backslash"
        ) from error


def find_matches(
    pattern: str,
    names: Sequence[str],
    option: str,
    others: Mapping[str, Sequence[str]] | None = None,
    *,
    what: str = "layers",
) -> frozenset[str]:
    """The names in which ``pattern`` is found anywhere, as `re.search` finds it.

    ``others``: for some names further texts, such as the path of a module, in which it may be found instead. ``what``:
    whose names they are, layers or nodes, for messages. Raises OptionError if there is none, with the nearest names,
    and if matching takes too long.
    """
    known = {name: (name, *filter(None, (others or {}).get(name, ()))) for name in names}
    texts = list(dict.fromkeys([*names, *itertools.chain.from_iterable(known.values())]))
    matching = _search(pattern, texts, option)
    found = frozenset(name for name in names if not matching.isdisjoint(known[name]))
    if not found:
        near = _nearest(pattern, texts)
        raise OptionError(
            f"{option} {_shorten(pattern)!r}: matches none of the {len(names)} {what}' names; near names are "
            f"{', '.join(map(repr, map(_shorten, near)))}; pdq-export inspect lists {_LISTED[what]}"
        )
    return found


def _search(pattern: str, names: Sequence[str], option: str) -> frozenset[str]:
    simple = len(_BRANCHING.findall(pattern)) < 2 and all(len(name) <= _LONG_NAME for name in names)
    if simple or not sys.executable:
        return frozenset(name for name in names if re.search(pattern, name))
    # Python's matcher cannot be interrupted but from outside: (a+)+$ takes years on a name of 50 letters.
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-c", _MATCH],
            input=json.dumps([pattern, list(names)]),
            capture_output=True,
            text=True,
            timeout=MATCH_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise OptionError(
            f"{option} {_shorten(pattern)!r}: takes more than {MATCH_SECONDS:.0f} seconds on the node names; expected "
            "a pattern without repeats inside repeats; write a simpler one"
        ) from None
    except (subprocess.CalledProcessError, OSError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise OptionError(
            f"{option} {_shorten(pattern)!r}: cannot be matched ({lines[-1][:200]}); expected a pattern without large "
            "counts of repeats; write a simpler one"
        ) from error
    return frozenset(json.loads(process.stdout))


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """Up to three names like the pattern's plain text; names that share a part with it count too."""
    plain = re.sub(r"\\(.)|[\^$.*+?()\[\]{}|]", r"\1", pattern)
    by_part = {part: name for name in names for part in (*reversed(name.split("/")), name) if part}
    near = difflib.get_close_matches(plain, by_part, n=12, cutoff=0.5) or sorted(by_part.values())
    return list(dict.fromkeys(by_part.get(part, part) for part in near))[:3]


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
