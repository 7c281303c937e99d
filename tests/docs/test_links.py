"""Links between the Markdown files of the repository, as they work where these are read as files.

`mkdocs build --strict` checks them on the site.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from docs.hooks import PAGES

ROOT = Path(__file__).parents[2]
TEXTS = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / page for page in PAGES)])
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def _text(path: Path) -> str:
    return _CODE.sub("", path.read_text(encoding="utf-8"))


@cache
def _anchors(path: Path) -> frozenset[str]:
    heads = re.findall(r"^#+ (.*)$", _text(path), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", _text(path)):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_every_markdown_file_is_on_the_site() -> None:
    """But for what pytest and tools keep beside the code."""
    ours = {path for folder in ("benchmarks", "recipes", "calib_data") for path in (ROOT / folder).rglob("*.md")}
    assert {*ours, *ROOT.glob("*.md")} <= set(TEXTS)


def test_readme_has_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name == "index.md" or f"](docs/{page.relative_to(ROOT / 'docs').as_posix()})" in text, page


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
