"""Runs an imported model once, so that what is wrong with it is told by node before any work is done."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pdq_export.errors import ModelError, PdqError
from pdq_export.graph.messages import essential_line


@torch.no_grad()
def check_runs(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Outputs of ``module`` for a few images, a tensor for each graph input. Raises ModelError, naming what fails."""
    runner = _Runner(module)
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


class _Runner(fx.Interpreter):
    """Remembers the ONNX node that is being computed."""

    node = ""

    def run_node(self, n: fx.Node) -> Any:
        self.node = str(n.meta.get("onnx_node") or n.meta.get("tensor", n.name))
        return super().run_node(n)
