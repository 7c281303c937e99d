"""A configuration as a TOML file: read with the line of whatever is wrong, and written with every option explained."""

import dataclasses
import functools
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdq_export.config.config import Config, check_name, checked, options_of
from pdq_export.config.option import Option, find_options, shown
from pdq_export.errors import OptionError
from pdq_export.nearby import near_names, near_path

_LARGEST = 1_000_000  # bytes; nobody has so many rules
_WIDTH = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class TomlFile:
    """What a file says: the ``values`` of options by name, each of which its option takes.

    ``others``: the sections that are no options, as they are.
    """

    path: Path
    text: str
    values: Mapping[str, Any]
    options: Mapping[str, Option]
    others: Mapping[str, Any]

    def where(self, name: str) -> str:
        """The file and the line in which an option stands, as messages begin."""
        return self.where_stands(*self.options[name].path, name)

    def where_stands(self, *keys: str) -> str:
        """The same of any keys, from the outermost section on."""
        return _where(self.path, self.text, keys)


def read_toml(path: str | Path, *, config: type = Config, others: Sequence[str] = ()) -> TomlFile:
    """Read the options that a file, or a pipe, gives; ``others``: names of sections that are no options.

    Raises OptionError with file and line: for what is no TOML, an unknown key, with the nearest, a key of another
    section, and a value that its option does not take.
    """
    path = Path(path)
    text = _read(path)
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise OptionError(f"{path}: is not TOML: {error}; expected lines NAME = VALUE under [SECTION]") from error
    except ValueError as error:  # Python reads no numbers of thousands of digits
        line = next((line for line, statement in _statements(text) if _is_too_long(statement)), 1)
        raise OptionError(f"{path}, line {line}: a number has too many digits; expected one of 64 bits") from error
    if isinstance(content.get("bits"), str) and content.keys() & {"layers", "tensors", "sha256"}:
        where = _where(path, text, ("bits",))
        raise OptionError(f"{where}these are bits of layers; expected options; give the file with --bits-from")
    options = options_of(config)
    rest = {name: content.pop(name) for name in others if name in content}
    values = dict(_leaves(content, (), options, functools.partial(_where, path, text)))
    return TomlFile(path=path, text=text, values=values, options=options, others=rest)


def _read(path: Path) -> str:
    """The text, without the mark that some editors put before it. What a pipe gives is gone then."""
    try:
        if not path.exists() or path.is_dir():
            what, near = ("is a folder", "") if path.is_dir() else ("no such file", near_path(path, ".toml"))
            raise OptionError(f"{path}: {what}; expected a TOML file; pdq-export init MODEL.onnx writes one{near}")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise OptionError(f"{path}: is larger than 1 MB; expected a TOML file of options")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: is not UTF-8 text; expected a TOML file") from error
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}; expected a TOML file") from error


def _leaves(
    table: Mapping[str, Any],
    path: tuple[str, ...],
    known: Mapping[str, Option],
    where: Callable[[Sequence[str]], str],
) -> Iterable[tuple[str, Any]]:
    options = [name for name, one in known.items() if one.path == path]
    deeper = len(path)
    sections = {one.path[deeper] for one in known.values() if one.path[:deeper] == path and one.path != path}
    for key, value in table.items():
        keys = (*path, key)
        if key in sections and isinstance(value, dict):
            yield from _leaves(value, keys, known, where)
            continue
        try:
            if key in sections:
                raise OptionError(f"{key} is {shown(value)}; expected a section [{'.'.join(keys)}]")
            if key in known and key not in options:
                if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value)):
                    raise OptionError(f"{key} is an option; expected it {_in(known[key].path)}, not as a section")
                raise OptionError(f"{key} stands {_in(path)}; expected it {_in(known[key].path)}")
            names = [*options, *sections] if path else sections
            if path and key not in names and not near_names(key, names) and (near := near_names(key, known)):
                raise OptionError(f"option {key!r} is unknown; did you mean {near[0]}, {_in(known[near[0]].path)}?")
            check_name(key, names, "option " if path else "section ")
            yield key, read_value(known[key], value)
        except OptionError as error:
            raise OptionError(f"{where(keys)}{error}") from error


def read_value(one: Option, value: Any) -> Any:
    """The value as the option stores it; a number in quotes is a text here, unlike on the command line.

    Raises OptionError for one that it does not take.
    """
    found = f"{one.name} is {shown(value)};"
    if isinstance(value, str) and one.kind in (bool, int, float):
        raise OptionError(f"{found} expected {one.expected(value)}")
    return checked(one, tuple(value) if isinstance(value, list) else value, found)


def _in(path: Sequence[str]) -> str:
    return f"in [{'.'.join(path)}]" if path else "before the first section"


def _where(path: Path, text: str, keys: Sequence[str]) -> str:
    return f"{path}, line {_line(text, keys)}: "


def _line(text: str, keys: Sequence[str]) -> int:
    """The line in which the statement begins that gives ``keys`` a value, or opens them as a section.

    ``text``: TOML, in whatever way: dotted keys, inline tables, texts and lists of several lines.
    """
    wanted = tuple(keys)
    section: tuple[str, ...] = ()
    for line, statement in _statements(text):
        table = tomllib.loads(statement)
        if statement.lstrip().startswith("["):
            section = _only_keys(table)
            if section[: len(wanted)] == wanted:
                return line
        elif wanted[: len(section)] == section and _has(table, wanted[len(section) :]):
            return line
    return 1


# What hides the ends of lines and brackets, then what those are; the text is known to be TOML.
_TOKEN = re.compile(
    r"""(?P<hidden>\#[^\n]* | \"{3}(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
    | (?P<open>[\[{]) | (?P<close>[\]}]) | (?P<end>\n)""",
    re.VERBOSE | re.DOTALL,
)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a TOML text, those together that only mean something together; each with the number of its first."""
    line, start, first, depth = 1, 0, 1, 0
    for token in _TOKEN.finditer(text):
        line += token[0].count("\n")
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if token.lastgroup == "end" and depth <= 0:
            yield first, text[start : token.end()]
            start, first = token.end(), line
    yield first, text[start:]


def _only_keys(table: Any) -> tuple[str, ...]:
    """The keys of a section that stands alone: ``[a.b]`` or ``[[a.b]]``."""
    keys: list[str] = []
    while table:
        ((key, table),) = table.items()
        keys.append(key)
        table = table[0] if isinstance(table, list) else table
    return tuple(keys)


def _has(table: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return bool(keys)


def _is_too_long(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return False
    except ValueError:
        return True
    return False


def write_toml(
    values: Mapping[str, Any],
    *,
    head: Iterable[str] = (),
    used: Mapping[str, Any] | None = None,
    explain: bool = True,
    recorded: bool = False,
    config: type = Config,
) -> str:
    """A TOML file with all options: those of ``values``, by name; the others as comments, with what they then are.

    ``head``: lines of comment before it. ``used``: what options are that have no default of their own. ``explain``:
    with help, choices, unit and default of each. ``recorded``: without the others that no written file says. The text
    is ASCII, but for ``head`` and help. Raises OptionError for a value that is not Unicode, as of a path of wild bytes.
    """
    blocks = ["".join(f"# {line}\n" if line else "#\n" for line in head)]
    path: tuple[str, ...] = ()
    for one in find_options(config):
        if recorded and not one.declared.recorded and one.name not in values:
            continue
        if one.path != path:
            path = one.path
            blocks.append(f"\n[{'.'.join(path)}]\n")
        given = one.name in values and values[one.name] != one.default
        value = values[one.name] if given else (used or {}).get(one.name, one.default)
        line = f"{'' if given else '#'}{one.name} = {_written(one, value)}\n"
        blocks.append(("\n" + _explained(one) if explain else "") + line)
    return "".join(blocks)


def _explained(one: Option) -> str:
    facts = [one.metavar] if one.metavar else []
    facts.append(f"default: {default_text(one)}")
    return "".join(f"# {line}\n" for line in textwrap.wrap(f"{one.declared.help}.  [{'; '.join(facts)}]", _WIDTH))


def default_text(one: Option) -> str:
    """What holds where the option is not given, in words."""
    if one.declared.unset:
        return one.declared.unset
    if isinstance(one.default, bool):
        return "on" if one.default else "off"
    return "none" if one.default == () else str(one.default)


def _written(one: Option, value: Any) -> str:
    """As TOML; None as what stands for a value, to be filled in."""
    if value is None:
        return literal(one.metavar) if one.kind is str else one.metavar
    return literal(value)


def literal(value: Any) -> str:
    """A value in TOML, in ASCII. Raises OptionError for a text that is not Unicode."""
    if isinstance(value, str):  # JSON's escapes are TOML's, but for those of other characters than ASCII
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise OptionError(f"{value!a}: is not Unicode, and TOML cannot say it; expected another name or pattern")
        quoted = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isascii() and c.isprintable() else _escaped(c) for c in quoted)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(literal, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
