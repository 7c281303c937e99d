"""Python names for ONNX names."""

import keyword
import re
from collections.abc import Iterable


class Names:
    """Gives every ONNX name a valid ASCII identifier that no other one has.

    ``reserved`` names are never given.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._taken = set(reserved)

    def new(self, onnx_name: str) -> str:
        """A fresh identifier that still resembles ``onnx_name``: ``/layer1.0/conv`` -> ``layer1_0_conv``."""
        base = re.sub(r"\W+", "_", onnx_name, flags=re.ASCII).strip("_") or "tensor"
        if base[0].isdigit() or keyword.iskeyword(base):
            base = f"t_{base}"
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name
