"""The page of what was written before: a report's JSON, or what a run has kept."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pdq_export import Report, quantize
from pdq_export.commands.report import write_page
from pdq_export.errors import CheckpointError, DataError, OptionError, PdqError
from pdq_export.report import to_html

from ..cli.fakes import make_report
from ..onnx_text import classifier


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "r.json"
    path.write_text(make_report().to_json(), encoding="utf-8")
    return path


def quantized(**where: Any) -> Report:
    rng = np.random.default_rng(0)
    net = classifier(8, 4)
    for name, shape in (("w1", (6, 3, 3, 3)), ("w2", (6, 6, 3, 3)), ("w3", (6, 4))):
        net.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    options: dict[str, Any] = {"preset": "fast", "samples": 16, "iters": 3, "correction_iters": 1, "device": "cpu"}
    images = rng.standard_normal((16, 3, 8, 8), dtype=np.float32)
    return quantize(net, calib=images, bits="4/4", **options, **where).report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is finished."""
    root = tmp_path_factory.mktemp("runs")
    quantized(work_dir=root)
    (folder,) = root.iterdir()
    return folder


def test_the_course_of_blocks_is_known_however_they_came(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken up, or without a folder to be kept in; and warnings are in the report."""
    resumed = quantized(work_dir=run.parent, resume=True)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PDQ_EXPORT_CACHE", str(tmp_path / "file"))
    unkept = quantized()
    assert [(block.block, block.losses) for block in resumed.blocks] == [(b.block, b.losses) for b in unkept.blocks]
    assert [len(block.losses) for block in unkept.blocks] == [3, 3, 3]
    assert any("finished blocks are not kept" in warning for warning in unkept.warnings)
    assert not any("finished blocks are not kept" in warning for warning in resumed.warnings)


def test_a_report(written: Path, tmp_path: Path) -> None:
    assert write_page(written, tmp_path / "r.html") == tmp_path / "r.html"
    assert (tmp_path / "r.html").read_bytes() == to_html(make_report())


def test_a_run(run: Path, tmp_path: Path) -> None:
    text = write_page(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([a-z]+)">', text) == ["asked", "layers", "losses", "histograms"]
    assert "3 of 3 blocks are kept" in text
    assert text.count('<div class="card">') == 3 + 3  # curves, and weights
    for weight in ("w1", "w2", "w3"):
        assert f"<b>{weight}</b>" in text


def test_a_damaged_run(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for file in run.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    block = folder / "block-0002.jsonl"
    block.write_bytes(block.read_bytes().replace(b"losses", b"lesson"))
    with pytest.raises(CheckpointError, match="block-0002"):
        write_page(folder, tmp_path / "r.html")
    (folder / "pdq-export-run.json").write_text("{}")
    with pytest.raises(DataError, match=r"pdq-export-run\.json.*is missing"):
        write_page(folder, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04pickle", b'{"schema_version": 9, "outputs": []}', b"[1, 2]"])
def test_what_is_no_report(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"r\.json: .*expected a report"):
        write_page(path, tmp_path / "r.html")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        write_page(tmp_path / "none.json", tmp_path / "r.html")
    with pytest.raises(DataError, match=r"has no pdq-export-run\.json"):
        write_page(tmp_path, tmp_path / "r.html")


def test_nothing_of_the_users_is_replaced(written: Path, run: Path, tmp_path: Path) -> None:
    before = written.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(OptionError):
            write_page(written, written, overwrite=overwrite)
        with pytest.raises(PdqError):
            write_page(run, run / "block-0001.jsonl", overwrite=overwrite)
    assert written.read_bytes() == before
    page = tmp_path / "r.html"
    page.write_text("mine")
    with pytest.raises(OptionError, match="exists already"):
        write_page(written, page)
    assert page.read_text() == "mine"
    write_page(written, page, overwrite=True)
    assert page.read_bytes() == to_html(make_report())


def test_what_is_no_report_is_told_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hello world")
    with pytest.raises(DataError, match=r"text\.json: is no JSON: it begins with b'hello world'; expected a report"):
        write_page(tmp_path / "text.json", tmp_path / "page.html")
