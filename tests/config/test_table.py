"""README's tables of options are those of the configuration."""

import re
from pathlib import Path

from pdq_export.config.config import options_of
from pdq_export.config.table import renewed, tables

from .toy import ToyConfig

README = Path(__file__).parents[2] / "README.md"


def test_readme_has_the_tables_as_they_are() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("<!-- table of ") == len(tables())
    told = "README.md: its tables of options are not those of the configuration; write them again with\n"
    assert renewed(text) == text, f"{told}  python -m pdq_export.config.table README.md"


def test_every_option_stands_in_one_table() -> None:
    both = "".join(tables().values())
    for one in options_of().values():
        name = re.escape(one.flag if one.declared.flag else one.name)
        assert len(re.findall(rf"^\| `{name}[ `]", both, re.MULTILINE)) == 1, name


def test_a_new_option_appears() -> None:
    text = "<!-- table of options: how -->\nold\n<!-- end -->\nbehind"
    row = r"| `--flavour plain\|sweet\|salty` | What it tastes of; see [Tastes](#tastes) | plain |"
    assert f"{row}\n<!-- end -->\nbehind" in renewed(text, ToyConfig)
