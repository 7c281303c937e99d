"""Data from ``module:function``."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from pdq_export.data import ImageSet, InputSpec, check_exists, check_form, read_data
from pdq_export.data.function import names_function
from pdq_export.errors import DataError

IMAGE = (InputSpec(name="image", shape=(None, 3, 4, 5)),)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("users_data", "users_package", "users_package.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def write(text: str, name: str = "users_data.py") -> None:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("import numpy as np\nX = np.ones((6, 3, 4, 5), np.float32)\n" + textwrap.dedent(text))


@pytest.mark.parametrize(
    "returned", ["X", "(X, np.arange(6))", "iter(X)", "({'image': x} for x in X)", "{'image': X}", "'x.npy'"]
)
def test_a_function_returns_any_data(returned: str) -> None:
    write(f"def make(): return {returned}")
    np.save("x.npy", np.ones((6, 3, 4, 5), np.float32))
    check_exists("users_data:make")
    data = read_data("users_data:make", IMAGE, limit=4)
    assert isinstance(data, ImageSet)
    assert len(data) == 4
    assert (data.labels is not None) == ("arange" in returned)
    assert data.source == ("x.npy" if "npy" in returned else "users_data:make")


def test_a_module_of_a_package() -> None:
    write("", "users_package/__init__.py")
    write("class Make(list):\n    def __init__(self): super().__init__(X)", "users_package/inner.py")
    assert len(read_data("users_package.inner:Make", IMAGE)) == 6


def test_a_path_with_a_colon_wins(here: Path) -> None:
    write("raise AssertionError('imported')")
    (here / "users_data:make").mkdir()
    assert not names_function("users_data:make")
    with pytest.raises(DataError, match="users_data:make: no images, it is empty"):
        read_data("users_data:make", IMAGE)


@pytest.mark.parametrize("text", ["images", "a/b:c", "a:b:c", "a:", ":b", "a b:c", "1a:b", "a.:b", "./a:b"])
def test_other_texts_are_paths(text: str) -> None:
    assert not names_function(text)
    assert not names_function(Path("users_data:make"))


def test_the_form_is_checked_without_running_code() -> None:
    write("raise AssertionError('imported')")
    check_form("users_data:make")
    with pytest.raises(DataError, match="nowhere:make: no such file or folder, and no module 'nowhere'"):
        check_form("nowhere:make")


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("", "nowhere:make", "no such file or folder, and no module 'nowhere'; expected MODULE:FUNCTION"),
        ("", "users_data.inner:make", "no module 'users_data.inner'"),
        ("import nowhere", "users_data:make", "importing 'users_data' raised ModuleNotFoundError: No module named"),
        ("raise SystemExit(2)", "users_data:make", "importing 'users_data' raised SystemExit: 2"),
        ("def f(:", "users_data:make", "importing 'users_data' raised SyntaxError"),
        ("def make(): 0", "users_data:mak", r"users_data.py\) has no 'mak'; did you mean users_data:make\?"),
        ("", "users_data:make", r"has no 'make'; expected MODULE:FUNCTION"),
        ("make = [X]", "users_data:make", "is list, which cannot be called; expected MODULE:FUNCTION"),
        ("def make(): raise ValueError('no\\nimages')", "users_data:make", "calling it raised ValueError: no images;"),
        ("def make(path): 0", "users_data:make", "calling it raised TypeError: make.. missing 1 required"),
        ("def make(): pass", "users_data:make", "users_data:make: NoneType given; expected a path, an array"),
        ("def make(): return [X[0, 0]]", "users_data:make", "users_data:make: item 0: shape 4 x 5; expected"),
        ("def make(): return 'nowhere'", "users_data:make", "nowhere: "),
    ],
)
def test_what_goes_wrong_is_told_once(text: str, source: str, message: str) -> None:
    write(text)
    with pytest.raises(DataError, match=message):
        read_data(source, IMAGE)
