"""The fenced blocks of a Markdown file, in order, with what comments before them tell the tests."""

import dataclasses
import re
import textwrap
from pathlib import Path

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_NOTE = re.compile(r"<!-- test: (.+?) -->")
_FILE = re.compile(r"^# ((?:[\w.-]+/)*[\w-]+\.[a-z]+)\b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """``line``: of its fence. ``notes``: comments ``<!-- test: … -->`` between the block before and this one."""

    line: int
    language: str
    text: str
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str | None:
        """The file that its first line, a comment, names."""
        named = _FILE.match(self.text)
        return named and named[1]

    @property
    def status(self) -> int:
        """The exit code that is expected."""
        told = [re.fullmatch(r"exits with (\d+)", note) for note in self.notes]
        return next((int(found[1]) for found in told if found), 0)

    @property
    def commands(self) -> list[str]:
        """What is run before it."""
        return [note.removeprefix("sh ") for note in self.notes if note.startswith("sh ")]


def blocks_of(text: str) -> list[Block]:
    """All blocks of a page."""
    found, end = [], 0
    for match in _BLOCK.finditer(text):
        notes = tuple(_NOTE.findall(text, end, match.start()))
        body = textwrap.dedent(match["text"])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(line=line, language=match["language"], text=body, notes=notes))
        end = match.end()
    return found


def needs_of(text: str) -> list[str]:
    """Files that a page takes for granted: ``<!-- test: needs NAME… -->``."""
    return [name for note in _NOTE.findall(text) if note.startswith("needs ") for name in note.split()[1:]]


def pages(root: Path) -> list[Path]:
    """README and all pages below docs."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
