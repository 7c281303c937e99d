"""Functions by name: MODULE:FUNCTION."""

from pathlib import Path

import pytest

from pdq_export.errors import OptionError
from pdq_export.user_code import find_function


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_metrics.py").write_text(
        "NUMBER = 3\ndef iou(outputs, labels): return 0.5\nclass Best:\n  top = iou\n"
    )
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "own_needs.py").write_text("import nowhere_to_be_found\n")


@pytest.mark.usefixtures("modules")
def test_a_function_is_found() -> None:
    assert find_function("own_metrics:iou", "--metric")({}, None) == 0.5
    assert find_function("own_metrics:Best.top", "--metric")({}, None) == 0.5


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iou", "--metric 'iou': expected MODULE:FUNCTION"),
        (":iou", "expected MODULE:FUNCTION"),
        ("own_metrics.py:iou", "'own_metrics.py' is a path; expected the name of a module"),
        (
            "nowhere:iou",
            "there is no module 'nowhere'; expected one that is installed, or a file in the current folder",
        ),
        ("own_metrics.deep:iou", "there is no module 'own_metrics.deep'"),
        ("own_needs:iou", "importing own_needs fails: No module named 'nowhere_to_be_found'; install what it needs"),
        ("own_broken:iou", "importing own_broken fails: ZeroDivisionError: division by zero"),
        ("own_exit:iou", "importing own_exit fails: SystemExit: 0"),
        ("own_metrics:miou", "own_metrics has no 'miou'; it has iou, Best; check the name"),
        ("own_metrics:NUMBER", "is int; expected a function"),
    ],
)
def test_what_is_wrong_is_told(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        find_function(text, "--metric")
    assert message in str(caught.value)
