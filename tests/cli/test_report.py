"""``pdq-export report``, and ``--report`` of several names."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pdq_export.cli import app
from pdq_export.report import to_html

from ..commands.test_validate import LABELS, X, net, rounded
from .fakes import make_report


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def test_the_page_of_a_report(here: Path) -> None:
    (here / "r.json").write_text(make_report().to_json(), encoding="utf-8")
    code, told, _ = run("report", "r.json")
    assert (code, told.startswith("wrote r.html, ")) == (0, True)
    assert (here / "r.html").read_bytes() == to_html(make_report())
    code, _, told = run("report", "r.json")
    assert (code, "r.html: exists already" in told) == (2, True)
    assert run("report", "r.json", "-o", "other.html", "-q")[:2] == (0, "")
    assert run("report", "r.json", "--overwrite")[0] == 0


def test_no_report(here: Path) -> None:
    (here / "r.json").write_text("{}")
    code, _, told = run("report", "r.json")
    assert code == 2
    assert "r.json: expected the JSON of a report" in told


def test_json_and_page_at_once(here: Path) -> None:
    import onnx

    for name, model in (("a.onnx", net()), ("b.onnx", rounded())):
        onnx.save(model, name)
    np.savez("x.npz", x=X, labels=LABELS)
    asked = ["validate", "a.onnx", "b.onnx", "--data", "x.npz"]
    code, told, messages = run(*asked, "--report", "r.json", "--report", "r.HTML")
    assert code == 0
    assert f"compared layer by layer on {len(X)} images in " in messages
    assert "wrote r.json\nwrote r.HTML" in told
    assert (here / "r.HTML").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads((here / "r.json").read_text(encoding="utf-8"))["layer_errors"]["images"] == len(X)
    code, _, told = run(*asked, "--report", "t.json", "--report", "t.json")
    assert (code, "--report is given twice with this name" in told) == (2, True)
    code, _, told = run(*asked, "--report", "b.onnx", "--overwrite")
    assert (code, "b.onnx: is the same file as the input" in told) == (2, True)
