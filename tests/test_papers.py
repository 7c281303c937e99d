"""What the papers name is there: paths, bounds of dependencies, the fast tests, and a changelog for the version."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import pdq_export

from .test_architecture import RULES, modules

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
FAST = ROOT / "tests" / "fast.txt"
FILE_NAME = re.compile(r"[\w.-]*\w\.(py|md|toml|txt|npz|onnx)")


def paths(text: str) -> set[str]:
    """Everything between backticks that is a path or the name of a file, and relative links."""
    code = re.findall(r"`([^`\s]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = {word for word in code if FILE_NAME.fullmatch(word) or re.fullmatch(r"\.{0,2}[\w-][\w./-]*/[\w./-]*", word)}
    blocks = re.findall(r"```sh(.*?)```", text, flags=re.DOTALL)
    words = [word for line in "".join(blocks).splitlines() for word in shlex.split(line, comments=True)]
    found |= {word.lstrip("@") for word in words if "/" in word and not word.startswith(".venv")}
    return found | set(re.findall(r"\]\(([^):#]+)[^):]*\)", text))


def is_there(path: str) -> bool:
    """As it is written from the root or from the end of a path; ``folder/module.function`` as well."""
    if (ROOT / path).exists() or any(any((ROOT / top).rglob(path)) for top in ("pdq_export", "cli", "tests")):
        return True
    module, _, name = path.rpartition(".")
    source = ROOT / "pdq_export" / f"{module}.py"
    return source.is_file() and re.search(rf"^(def |class )?{name}\b", source.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("paper", PAPERS)
def test_every_path_that_is_named_exists(paper: str) -> None:
    named = paths((ROOT / paper).read_text(encoding="utf-8"))
    assert len(named) > 5
    assert not sorted(path for path in named if not is_there(path) and path not in ("Data", ".npz", ".npy"))


def test_a_path_that_is_not_there_is_found() -> None:
    assert paths("see `plan/nothing.py`, `gone.py`, [x](OTHER.md#y) and `tail`") == {
        "plan/nothing.py",
        "gone.py",
        "OTHER.md",
    }
    assert not any(map(is_there, ("plan/nothing.py", "gone.py", "OTHER.md", "plan/tail.nothing")))
    assert is_there("plan/tail.without_tail")


def test_tests_that_are_named_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    defined = {
        name for file in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert named
    assert named <= defined


def fast_arguments() -> tuple[list[Path], list[str]]:
    """The folders and files of the fast tests, and the options that leave some out."""
    lines = FAST.read_text(encoding="utf-8").split("\n")[:-1]
    chosen = [line for line in lines if not line.startswith("-")]
    return [ROOT / line for line in chosen], [line for line in lines if line.startswith("-")]


def test_the_fast_tests_are_there() -> None:
    chosen, left_out = fast_arguments()
    assert [path for path in chosen if not path.exists()] == []
    for option in left_out:
        kind, _, node = option.partition("=")
        assert kind in ("--ignore", "--deselect"), option
        file, *names = node.split("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert all(re.search(rf"(def|class) {name}\b", text) for name in names), option


def test_the_fast_tests_have_something_of_every_layer() -> None:
    chosen, left_out = fast_arguments()
    ignored = {ROOT / option.removeprefix("--ignore=") for option in left_out if option.startswith("--ignore=")}
    files = {file for path in chosen for file in ([path] if path.is_file() else path.rglob("test_*.py"))} - ignored
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    missing = [part for part in RULES if modules(part) and not re.search(rf"pdq_export(\.| import .*\b){part}\b", text)]
    whole_run = {"fidelity", "signature"}  # what tests/test_smoke.py goes through and nothing of the others imports
    assert set(missing) <= whole_run


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\w.]+)(?:;.*)?", line).groups() for line in declared)  # type: ignore[union-attr]
    lowest = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    assert set(bounds) - set(lowest) == {"ruff", "mypy"}
    assert set(lowest) <= set(bounds)
    assert lowest.pop("torch") in (ROOT / "constraints.txt").read_text()
    for name, version in lowest.items():
        assert version == bounds[name] or version.startswith(f"{bounds[name]}."), name


def test_the_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.startswith("# Changelog\n")
    assert "\n## Unreleased\n" in text
    assert pdq_export.__version__ in text


def test_readmes_first_command_is_what_ci_runs() -> None:
    """CI takes the second half of the line out of README by this pattern."""
    commands = re.findall(
        r"^pip install .* && (pdq-export quantize .*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert commands[:1]
    assert "s/^pip install .* && \\(pdq-export quantize .*\\)$/\\1/p" in (ROOT / ".ci" / "run").read_text()
