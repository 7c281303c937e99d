"""What a converter sees (a node) and what it answers (a call of a torch function)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pdq_export.errors import UnsupportedOperatorError


@dataclasses.dataclass(frozen=True)
class Ref:
    """The value of an ONNX tensor at run time; the importer puts an fx node in its place."""

    tensor: str


Parameter = Ref | list[Any] | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of ``function``: ``Ref`` inputs in ``args``, everything else baked.

    ``outputs``: whether the function returns a tuple with one entry for each output of the ONNX node.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outputs: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxNode:
    """A node with its attributes decoded, schema defaults filled in, and the inputs known at import time.

    ``attributes`` holds None for an optional attribute without a default. ``constants``: by name, the inputs whose
    value is known. Optional inputs and outputs that are left out are ''.
    """

    name: str
    domain: str
    op_type: str
    opset: int
    since_version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: Mapping[str, torch.Tensor]

    def attribute(self, name: str) -> Any:
        """The attribute's value, its default from the operator's schema, or None."""
        return self.attributes.get(name)

    def has_input(self, index: int) -> bool:
        """Whether input ``index`` is given: an optional input may be left out or ''."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def tensor(self, index: int) -> Ref | None:
        """Input ``index`` as a run-time value, None if it is left out."""
        return Ref(self.inputs[index]) if self.has_input(index) else None

    def tensors(self) -> list[Ref]:
        """All inputs as run-time values (variadic operators)."""
        return [Ref(name) for name in self.inputs]

    def constant(self, index: int) -> torch.Tensor | None:
        """The value of input ``index`` if it is known at import time, else None."""
        return self.constants.get(self.inputs[index]) if self.has_input(index) else None

    def parameter(self, index: int) -> Parameter:
        """Input ``index`` as a Python number or list if it is known, else as a run-time value.

        None if it is left out.
        """
        value = self.constant(index)
        if value is None:
            return self.tensor(index)
        baked: list[Any] | int | float | bool = value.tolist()
        return baked

    def unsupported(self, found: str, remedy: str) -> UnsupportedOperatorError:
        """The error for something about this node that the frontend does not know."""
        return UnsupportedOperatorError(f"{describe(self)}: {found}; {remedy}", found=found)


def describe(node: OnnxNode) -> str:
    """How messages name a node: ``node '/layer1/act' (Gelu, opset 20)``.

    A node without a name is named by its first output.
    """
    return describe_as(node.name, node.domain, node.op_type, node.opset, node.outputs)


def describe_as(name: str, domain: str, op_type: str, opset: int, outputs: Sequence[str]) -> str:
    """The same for a node that has not been decoded yet."""
    where = f"node {name!r}" if name else f"the node that computes {next(iter(outputs), '')!r}"
    return f"{where} ({domain + '.' if domain else ''}{op_type}, opset {opset})"
