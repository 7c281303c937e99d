"""Names near those of files that are missing, and the places that propose them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pdq_export.cli.bench import _ModelPath
from pdq_export.cli.paths import ModelPath
from pdq_export.commands.report import write_page
from pdq_export.config.toml import read_toml
from pdq_export.data import InputSpec, check_exists, load_inputs
from pdq_export.errors import PdqError
from pdq_export.files import check_writable
from pdq_export.graph.load import load_model
from pdq_export.nearby import near_names, near_path
from pdq_export.search.bits_file import read_bits


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("images", "models"):
        (tmp_path / folder).mkdir()
    names = ("resnet.onnx", "NET.onnx", "models/small.onnx", "eval.npz", "run.toml", "bits.json", "4.onnx", ".hid.onnx")
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "gone.onnx").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "suffixes", "found"),
    [
        ("resnte.onnx", (), "resnet.onnx"),
        ("resnet", (".onnx",), "resnet.onnx"),
        ("net.ONNX", (), "NET.onnx"),  # case, which some file systems do not tell apart
        ("model/small.onnx", (), "models/small.onnx"),
        ("model/smal.onnx", (), "models/small.onnx"),
        ("imges", (), "images"),
        ("imges.npz", (), None),
        ("imges.npz", ("",), "images"),
        ("evel.onnx", (".onnx",), None),  # there is an .npz of that name
        ("abc.onnx", (), None),  # alike in the suffix alone
        ("hid.onnx", (), None),
        ("gone.onnx", (), None),
        ("gome.onnx", (), None),
        ("elsewhere/small.onnx", (), None),
        ("resnet.onnx/a.onnx", (), None),
        ("n" * 5000, (), None),
        ("a\0b", (), None),
        ("", (), None),
        ("/", (), None),
    ],
)
def test_names_near_a_missing_one(given: str, suffixes: tuple[str, ...], found: str | None) -> None:
    assert near_path(given, *suffixes) == ("" if found is None else f"; did you mean {found}?")


def test_a_name_is_shown_without_what_moves_the_cursor(tmp_path: Path) -> None:
    (tmp_path / "mobilenet\x1b[2J.onnx").touch()
    assert near_path("mobilenet.onnx") == r"; did you mean mobilenet\x1b[2J.onnx?"


SPEC = InputSpec(name="x", shape=(None, 4))
PLACES: dict[str, tuple[Callable[[str], object], str, str]] = {
    "a model": (load_model, "resnte.onnx", "resnet.onnx"),
    "data": (check_exists, "image", "images"),
    "data by input name": (lambda path: load_inputs(path, expected=[SPEC]), "evla.npz", "eval.npz"),
    "a model on the command line": (lambda path: ModelPath().convert(path, None, None), "resnte.onnx", "resnet.onnx"),
    "a model of bench": (lambda path: _ModelPath().convert(path, None, None), "4", "4.onnx"),
    "options": (lambda path: read_toml(Path(path)), "runn.toml", "run.toml"),
    "bits": (lambda path: read_bits(Path(path)), "bit.json", "bits.json"),
    "a report": (lambda path: write_page(path, "page.html"), "bit.json", "bits.json"),
    "a folder to write to": (check_writable, "modle/a.onnx", "models"),
}


@pytest.mark.parametrize("place", PLACES)
def test_places_that_propose_one(place: str) -> None:
    read, given, found = PLACES[place]
    with pytest.raises(PdqError) as caught:
        read(given)
    assert given in str(caught.value)
    assert str(caught.value).endswith(f"; did you mean {found}?")


@pytest.mark.parametrize(
    ("name", "most", "found"),
    [
        ("RELU", 1, ["Relu"]),
        ("Relus", 3, ["Relu", "PRelu"]),
        ("x", 3, ["X", "x"]),  # two names, though they differ in case alone
        ("Softmax", 3, []),
    ],
)
def test_names_are_near_in_whichever_case(name: str, most: int, found: list[str]) -> None:
    assert near_names(name, ["PRelu", "Relu", "X", "x"], most=most) == found
