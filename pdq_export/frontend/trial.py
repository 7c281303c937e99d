"""Runs an imported model once, so that what is wrong with it is told by node before any work is done."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pdq_export.errors import ModelError, PdqError
from pdq_export.graph.messages import essential_line


@torch.no_grad()
def check_runs(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Outputs of ``module`` for a few images, given as a tensor for each graph input.

    Raises ModelError, naming the node that fails.
    """
    runner = NodeRunner(module)
    try:
        outputs: Sequence[Tensor] = runner.run(*inputs)
    except PdqError:
        raise
    except Exception as error:  # whatever torch and the operators raise for shapes that do not fit
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        raise ModelError(
            f"node {runner.node!r}: fails on an input of shape {shapes} ({essential_line(error)}); expected a model "
            "that runs on the calibration images; check it in onnxruntime with the same images"
        ) from error
    return outputs


@torch.no_grad()
def compute_tensors(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, NDArray[np.floating[Any]]]:
    """Every float tensor that nodes of ``module`` compute, by its ONNX name, on the CPU."""
    runner = _Recorder(module)
    runner.run(*inputs)
    return runner.tensors


@torch.no_grad()
def compute_tensor(module: fx.GraphModule, inputs: Sequence[Tensor], name: str) -> NDArray[np.floating[Any]] | None:
    """The tensor of this ONNX name, on the CPU, and nothing behind it; None where no node computes it."""
    runner = _Until(module, name)
    runner.run(*inputs)
    return None if runner.found is None else np.asarray(runner.found.cpu())


class _Until(fx.Interpreter):
    """Computes nothing more once a tensor is there. An exception would end it too, but fx imports its compiler then."""

    def __init__(self, module: fx.GraphModule, name: str) -> None:
        super().__init__(module)
        self.found: Tensor | None = None
        self._name = name

    def run_node(self, n: fx.Node) -> Any:
        if self.found is not None:
            return None
        result = super().run_node(n)
        if n.meta.get("tensor") == self._name and n.op != "output" and isinstance(result, Tensor):
            self.found = result
        return result


class _Recorder(fx.Interpreter):
    """Keeps what is computed."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.tensors: dict[str, NDArray[np.floating[Any]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        name = n.meta.get("tensor")
        if n.op == "call_function" and name and isinstance(result, Tensor) and result.is_floating_point():
            self.tensors[name] = result.numpy()
        return result


class NodeRunner(fx.Interpreter):
    """Remembers the ONNX node that is being computed."""

    node = ""

    def run_node(self, n: fx.Node) -> Any:
        self.node = str(n.meta.get("onnx_node") or n.meta.get("tensor", n.name))
        return super().run_node(n)
