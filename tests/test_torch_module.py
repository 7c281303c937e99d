"""Torch modules as models: exported with BatchNormalization kept, without a trace in the module."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pdq_export import inspect_model, quantize
from pdq_export.errors import ModelError
from pdq_export.torch_module import export_module

FAST = {"samples": 16, "iters": 4, "correction_iters": 1, "batch_size": 4}
X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers with BatchNormalization, one of them frozen, and Dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.more = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4).eval(), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.more(self.features(image)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    made(X)  # BatchNormalization learns
    return made


def state(net: nn.Module) -> Any:
    return [part.training for part in net.modules()], {name: x.clone() for name, x in net.state_dict().items()}


def test_it_is_exported_as_it_evaluates_and_stays_as_it_was(net: Net) -> None:
    modes, tensors = state(net)
    model = export_module(net, X[:2])
    after_modes, after = state(net)
    assert modes == after_modes
    assert modes.count(True) > 0
    assert all(torch.equal(x, after[name]) for name, x in tensors.items())
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 2
    assert [value.name for value in model.graph.input] == ["image"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": X.numpy()})  # another batch size than the example's
    assert np.allclose(found, net.eval()(X).detach().numpy(), atol=1e-5)


def test_it_is_quantized_as_its_file_would_be(net: Net) -> None:
    first = quantize(net, example_input=X[:1], calib=X, options=FAST, device="cpu")
    assert first.report.model.name == "Net"
    assert first.report.kernels is not None
    assert sum(first.report.kernels.integer.values()) == 3
    second = quantize(export_module(net, X[:1]), calib=X.numpy(), options=FAST, device="cpu")
    assert first.model.graph == second.model.graph
    assert quantize(net, example_input=X[:1], calib=X, options=FAST, device="cpu").model == first.model


def test_inspect_takes_it_too(net: Net) -> None:
    found = inspect_model(net, example_input=(X,), opset=13, bits="8/8")
    assert (found.opset, found.layers_with_statistics, found.problems) == (13, 2, ())
    assert [layer.scope for layer in found.layers]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_is_wrapped(net: Net, wrap: Any) -> None:
    assert export_module(wrap(net), X[:2]).graph == export_module(net, X[:2]).graph


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
            return self.layer(left) + right * scale

    model = export_module(Two(), (torch.zeros(2, 2), torch.zeros(2, 2)))
    assert [value.name for value in model.graph.input] == ["left", "right"]
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input)


class Unknown(nn.Module):
    """The exporter does not know this operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.special.i0(self.layer(image)).mean((2, 3))


@pytest.mark.parametrize(
    ("make", "example", "message"),
    [
        (Net, None, r"Net: example_input is missing; expected a tensor \[N, ...\]"),
        (Net, np.zeros((2, 3, 8, 8)), r"Net: example_input is ndarray; expected a tensor"),
        (Net, torch.tensor(1.0), r"Net: example_input is a scalar; expected a tensor"),
        (Net, X[:1, :2], r"Net: torch cannot export it \(RuntimeError: .*3 channels"),
        (Net, (X[:1], X[:1]), r"Net: torch cannot export it \(TypeError: .*positional arguments"),
        (Unknown, X[:1], r"Unknown: torch cannot export it \(.*i0.*replace what it names, .* dynamo=True"),
    ],
)
def test_what_cannot_be_exported(make: type[nn.Module], example: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        quantize(make(), example_input=example, calib=X, options=FAST, device="cpu")


@pytest.mark.parametrize("model", [5, b"onnx", None, Net])
def test_other_things_are_no_models(model: Any) -> None:
    with pytest.raises(ModelError, match=r"model is \w+; expected the path of an ONNX file, an onnx.ModelProto or a"):
        quantize(model, calib=X, options=FAST, device="cpu")
