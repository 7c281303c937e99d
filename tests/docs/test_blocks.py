"""Every block of README and of the pages in docs runs, or is read as what it is.

Each page has a folder of its own with ``model.onnx``, ``images/``, ``test.npz`` and ``calib_data/``, small ones, and
its blocks go in order, each in the folder that the one before it ends in, which at first is as a clone of the
repository. What a block is decides what becomes of it:

- ``sh`` is run by bash. ``pdq-export`` and ``python`` are those of this tree (server.py); what does nothing here is in
  `LEFT_OUT` of conftest.py, with the reason. It has to succeed, or to end as a comment before it says:
  ``<!-- test: exits with 2 -->``;
- ``python`` is run, or written to the file that its first line names (``# loaders.py``);
- ``toml`` and ``yaml`` are parsed, and written where they name a file; jobs of GitHub have their steps run;
- ``text`` shows what the block before it has printed: every line has to be among it, with figures of any value, and
  ``…`` for anything.

``<!-- test: needs model-int8.onnx -->`` gives a page more files (`made` in conftest.py), and
``<!-- test: sh mkdir empty -->`` runs a command first that readers need not see. Other blocks fail.
"""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from .blocks import Block, blocks_of, needs_of, pages
from .conftest import LEFT_OUT, ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
SECONDS = 120
PAGES = pages(ROOT)


class Session:
    """A page that is read and followed in ``folder``; ``printed``: what its last block has printed."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.printed = ""
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        summary = folder / "summary.md"
        self._left = folder.parent / "left"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "GITHUB_STEP_SUMMARY": str(summary)}

    def follow(self, block: Block) -> None:
        does = {
            "sh": self._shell,
            "python": self._python,
            "toml": self._toml,
            "yaml": self._yaml,
            "text": self._shown,
        }
        assert block.language in does, f"a block of {block.language or 'no language'!r} that no test runs"
        for command in block.commands:
            self.shell(command)
        does[block.language](block)

    def shell(self, script: str, status: int = 0) -> None:
        done = subprocess.run(
            ["bash", "-eu", "-c", f"trap 'pwd > {self._left}' EXIT\n{script}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=SECONDS,
        )
        self.printed = done.stdout
        self.folder = Path(self._left.read_text(encoding="utf-8").removesuffix("\n"))
        assert done.returncode == status, f"exit code {done.returncode} of\n{script}\n{done.stdout}"

    def _shell(self, block: Block) -> None:
        self.shell(block.text, block.status)

    def _write(self, block: Block, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")

    def _python(self, block: Block) -> None:
        if block.file:
            compile(block.text, block.file, "exec")
            self._write(block, block.file)
        else:
            (self.folder / "block.py").write_text(block.text, encoding="utf-8")
            self.shell("python block.py", block.status)

    def _toml(self, block: Block) -> None:
        tomllib.loads(block.text)
        if block.file:
            self._write(block, block.file)

    def _yaml(self, block: Block) -> None:
        content = yaml.safe_load(block.text)
        if block.file:
            self._write(block, block.file)
        for job in content.get("jobs", {}).values():
            for step in job["steps"]:
                assert set(step) & {"run", "uses"}, step
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1")), step
                if "run" in step:
                    self.shell(step["run"])

    def _shown(self, block: Block) -> None:
        for line in filter(str.strip, block.text.splitlines()):
            assert re.search(_pattern(line), " ".join(self.printed.split())), f"not printed: {line}\n{self.printed}"


def _pattern(line: str) -> str:
    """A line as a regular expression: figures of any value, spaces of any width, … for anything."""
    parts = re.split(r"(\d+(?:[.,]\d+)*|\s+|…)", line.strip())
    kinds = {"…": ".*?", " ": r"\s+"}
    return "".join(
        r"[\d.,]+" if part[:1].isdigit() else kinds.get(part.strip() or " " if part else "", re.escape(part))
        for part in parts
    )


@pytest.fixture
def session(given: Path, programs: Path, tmp_path: Path) -> Session:
    folder = tmp_path / "page"
    shutil.copytree(given, folder)
    return Session(folder, programs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of(page: Path, session: Session, made: Callable[[str], Path]) -> None:
    text = page.read_text(encoding="utf-8")
    for name in needs_of(text):
        source = made(name)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, session.folder / name)
    for block in blocks_of(text):
        try:
            session.follow(block)
        except Exception as error:
            error.add_note(f"{page.relative_to(ROOT)}, line {block.line}")
            raise


def test_all_fences_are_blocks() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) == 2 * len(blocks_of(text)), page


def test_programs_that_are_left_out_are_called() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page.read_text(encoding="utf-8"))]
    called = "\n".join(block.text for block in blocks if block.language in ("sh", "yaml"))
    for name in LEFT_OUT:
        assert re.search(rf"(?:^|[\s&;])(?:run: )?{name}\b", called, re.MULTILINE), name


@pytest.mark.parametrize("language", ["", "bash", "console", "json"])
def test_a_block_that_nothing_runs_fails(session: Session, language: str) -> None:
    (block,) = blocks_of(f"text\n\n```{language}\npdq-export example\n```\n")
    with pytest.raises(AssertionError, match="that no test runs"):
        session.follow(block)


def test_what_goes_wrong_fails(session: Session) -> None:
    text = """
```sh
pdq-export inspect none.onnx
```

<!-- test: exits with 2 -->
```sh
pdq-export inspect none.onnx
```

```text
pdq-export: error: none.onnx … 17
```

```sh
echo '  figures: 3.5'
```

```text
figures: 17
```

```text
figures:
other
```
"""
    wrong, right, unsaid, echo, figures, other = blocks_of(text)
    for block in (wrong, unsaid, other):
        if block is unsaid:
            session.follow(right)
        if block is other:
            session.follow(echo)
            session.follow(figures)
        with pytest.raises(AssertionError, match=r"exit code 2|not printed"):
            session.follow(block)
