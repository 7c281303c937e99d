"""``pdq-export cache``: what it shows, removes and refuses."""

import json
from pathlib import Path

import pytest

from pdq_export.runs import Run, RunKey, open_run

from .conftest import Run as Invoke


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a run of two blocks, of which one is finished."""
    key = RunKey(parts={"model": "a" * 64})
    run = Run(model="net.onnx", bits="4/2", created="2026-01-01T00:00:00", blocks=2, digest=key.digest, key=key)
    with open_run(tmp_path / "kept", run, resume=False) as folder:
        folder.save(0, "first", "{}", "{}")
    return tmp_path / "kept"


def test_runs_are_listed(run: Invoke, root: Path) -> None:
    result = run("cache", "--work-dir", root)
    assert result.exit_code == 0
    assert "net-w4a2-" in result.stdout
    assert "1 of 2" in result.stdout
    content = json.loads(run("cache", "--work-dir", root, "--json").stdout)
    (described,) = content["runs"]
    assert (described["model"], described["bits"], described["done"], described["blocks"]) == ("net.onnx", "4/2", 1, 2)
    assert described["size"] == sum(path.stat().st_size for path in next(root.iterdir()).iterdir())


def test_there_are_none(run: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(tmp_path))
    assert f"no runs in {tmp_path}" in run("cache").stdout


def test_clearing(run: Invoke, root: Path) -> None:
    assert "removed 0 runs" in run("cache", "--work-dir", root, "--clear", "--older-than", "1d").stdout
    assert len(list(root.iterdir())) == 1
    result = run("cache", "--work-dir", root, "--clear")
    assert (result.exit_code, "removed 1 run, " in result.stdout) == (0, True)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--older-than", "1d"), "choose what --clear removes; give --clear, too"),
        (("name",), "choose what --clear removes; give --clear, too"),
        (("--clear", "--older-than", "soon"), "--older-than 'soon': expected a number of minutes, hours or days"),
        (("--clear", "name"), "'name': is no run in"),
    ],
)
def test_what_is_refused(run: Invoke, root: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("cache", "--work-dir", root, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_user_without_a_home(run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*arguments: object, **options: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PDQ_EXPORT_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", homeless)
    result = run("cache")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "this user has no home directory" in result.stderr


def test_names_are_no_markup(run: Invoke, tmp_path: Path) -> None:
    key = RunKey(parts={"model": "a" * 64})
    model = "[red]net[/blue]\x1b[2J.onnx"
    kept = Run(model=model, bits="4/2", created="2026-01-01T00:00:00", blocks=2, digest=key.digest, key=key)
    with open_run(tmp_path, kept, resume=False):
        pass
    result = run("cache", "--work-dir", tmp_path)
    assert (result.exit_code, "[red]net[/blue]\\x1b[2J.onnx" in result.stdout) == (0, True)


def test_any_age(run: Invoke, root: Path) -> None:
    assert "removed 0 runs" in run("cache", "--work-dir", root, "--clear", "--older-than", "999999d").stdout
