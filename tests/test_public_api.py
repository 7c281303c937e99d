"""What `pdq_export` exports does not change by accident: names, parameters and fields are those of public_api.txt.

A change that is meant is told in CHANGELOG.md; `python -m tests.test_public_api > tests/public_api.txt` records it.
"""

import dataclasses
import difflib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pdq_export

RECORDED = Path(__file__).with_name("public_api.txt")


def described() -> str:
    """A line a name, and indented below it one for each parameter of a function, or field of a dataclass."""
    return "".join("\n  ".join([head(name), *members(name)]) + "\n" for name in pdq_export.__all__)


def head(name: str) -> str:
    thing = getattr(pdq_export, name)
    base = thing.__base__.__name__ if isinstance(thing, type) and thing.__base__ else ""
    return f"class {name}" + (f"({base})" if base != "object" else "") if base else name


def members(name: str) -> list[str]:
    thing = getattr(pdq_export, name)
    if dataclasses.is_dataclass(thing):
        return [field.name for field in dataclasses.fields(thing)]
    return list(parameters(thing)) if inspect.isroutine(thing) else []


def parameters(function: Callable[..., object]) -> Iterator[str]:
    """As they are called; ``=`` behind one that can be left out."""
    keyword_only = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        yield f"{stars}{parameter.name}{'' if parameter.default is parameter.empty else '='}"


def test_names_parameters_and_fields_are_those_recorded() -> None:
    changed = list(difflib.unified_diff(RECORDED.read_text(encoding="utf-8").splitlines(), described().splitlines()))
    assert not changed, "\n".join(
        [
            "the public API is not the recorded one; if that is meant, tell it in CHANGELOG.md and run",
            "python -m tests.test_public_api > tests/public_api.txt",
            *changed,
        ]
    )


def test_every_public_name_is_listed_and_documented() -> None:
    assert sorted(pdq_export.__all__) == pdq_export.__all__
    assert set(pdq_export.__all__) <= set(dir(pdq_export))
    for name in pdq_export.__all__:
        assert name == "__version__" or getattr(pdq_export, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = pdq_export.quantise  # type: ignore[attr-defined]


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, pdq_export, pdq_export.errors; dir(pdq_export); pdq_export.PdqError; pdq_export.BitWidths;"
        "print([name for name in ('torch', 'onnx', 'onnxsim', 'onnxruntime', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    print(described(), end="")
