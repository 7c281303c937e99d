"""The tables of options in README and docs are those of the configuration."""

import re
from pathlib import Path

from pdq_export.config.config import options_of
from pdq_export.config.table import MOST_USED, main, renewed, tables, with_tables

from .toy import ToyConfig

ROOT = Path(__file__).parents[2]


def test_readme_and_docs_have_the_tables_as_they_are() -> None:
    found = with_tables(ROOT)
    for path, text in found.items():
        told = "its tables of options are not those of the configuration; write them again with\n"
        assert path.read_text(encoding="utf-8") == text, f"{path}: {told}  python -m pdq_export.config.table"
    everywhere = "".join(found.values())
    for name in tables():
        assert f"<!-- table of {name}: " in everywhere, name


def test_every_option_stands_in_one_table() -> None:
    all_of_them = "".join(table for name, table in tables().items() if name != "the most used options")
    for one in options_of().values():
        name = re.escape(one.flag if one.declared.flag else one.name)
        assert len(re.findall(rf"^\| `{name}[ `]", all_of_them, re.MULTILINE)) == 1, name


def test_readme_has_ten_options() -> None:
    assert len(MOST_USED) == 10
    assert tables()["the most used options"].count("\n| `--") == 10


def test_a_new_option_appears() -> None:
    text = "<!-- table of options: how -->\nold\n<!-- end -->\nbehind"
    row = r"| `--flavour plain\|sweet\|salty` | What it tastes of; see [Tastes](tastes.md) | plain |"
    assert f"{row}\n<!-- end -->\nbehind" in renewed(text, ToyConfig)


def test_links_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for path in (tmp_path / "README.md", tmp_path / "docs" / "options.md"):
        path.write_text("<!-- table of options: how -->\nold\n<!-- end -->\n")
    (tmp_path / "docs" / "none.md").write_text("none")
    main(str(tmp_path))
    assert "see [Targets](docs/targets.md)" in (tmp_path / "README.md").read_text()
    assert "see [Targets](targets.md)" in (tmp_path / "docs" / "options.md").read_text()
    assert (tmp_path / "docs" / "none.md").read_text() == "none"
