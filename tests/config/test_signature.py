"""Functions that take options as ``**fields`` show them, as if they stood in their signature."""

import inspect
from typing import Any

from pdq_export.config.config import options_of
from pdq_export.config.signature import takes_options


@takes_options("inspect")
def look(model: str, *, bits: Any = None, **fields: Any) -> None:
    """Look at a model.

    Raises PdqError.
    """


def test_the_signature_names_every_option() -> None:
    parameters = inspect.signature(look).parameters
    assert set(parameters) == {"model", *options_of(command="inspect")}
    assert parameters["bits"].default is None  # its own
    assert parameters["target"].default == "ort"
    assert parameters["opset"].annotation == int | None


def test_the_help_explains_every_option() -> None:
    assert look.__doc__ is not None
    assert look.__doc__.startswith(
        "Look at a model.\n\nRaises PdqError.\n\nOptions, by keyword:\n\n``first_last``: Bits"
    )
    assert "``exclude_op``: Leave all nodes of an operator in float, for example Add (default: none)." in look.__doc__
