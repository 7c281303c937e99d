"""Functions by name, MODULE:FUNCTION, and what is said where they cannot be had."""

import re
from pathlib import Path

import pytest

from pdq_export.errors import OptionError
from pdq_export.user_code import UserFunction


def named(source: str) -> UserFunction:
    return UserFunction(
        source=source, error=OptionError, kind="a function", expected="expected MODULE:FUNCTION", begins="--metric "
    )


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_metrics.py").write_text("NUMBER = 3\ndef iou(outputs, labels): return 0.5\n")
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "own_needs.py").write_text("import nowhere_to_be_found\n")


@pytest.mark.usefixtures("modules")
def test_a_function_is_found() -> None:
    assert named("own_metrics:iou").find()({}, None) == 0.5


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iou", "--metric iou: expected MODULE:FUNCTION"),
        (":iou", "--metric :iou: expected MODULE:FUNCTION"),
        ("own_metrics.py:iou", "no module 'own_metrics.py'; expected MODULE:FUNCTION; modules are looked for in"),
        ("./own_metrics:iou", "--metric ./own_metrics:iou: expected MODULE:FUNCTION"),
        ("nowhere:iou", "no module 'nowhere'; expected MODULE:FUNCTION; modules are looked for in the current folder"),
        ("own_needs:iou", "importing 'own_needs' raised ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("own_broken:iou", "importing 'own_broken' raised ZeroDivisionError: division by zero; expected a function"),
        ("own_exit:iou", "importing 'own_exit' raised SystemExit: 0"),
        ("own_metrics:iuo", "has no 'iuo'; did you mean own_metrics:iou?"),
        ("own_metrics:NUMBER", "is int, which cannot be called; expected MODULE:FUNCTION"),
    ],
)
def test_what_is_wrong_is_told(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        named(text).find()
    assert message in str(caught.value)


@pytest.mark.usefixtures("modules")
def test_the_line_of_the_users_own_code_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"\({re.escape(str(tmp_path / 'own_broken.py'))}, line 1; --verbose"):
        named("own_broken:iou").find()
    (tmp_path / "own_wrong.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(OptionError, match=r"own_wrong\.py, line 2\)"):
        named("own_wrong:f").find()
    (tmp_path / "own_deep.py").write_text("import json\n\ndef f():\n    return json.loads('no')\n")
    named_deep = named("own_deep:f")
    function = named_deep.find()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        function()
    assert "own_deep.py, line 4;" in str(named_deep.raised("calling it", caught.value))
