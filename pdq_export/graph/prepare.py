"""The preparation of a model: small passes in a fixed order."""

import dataclasses
import enum
import functools
from collections.abc import Iterator, Mapping

import onnx

from pdq_export.graph import checks, origins, scopes
from pdq_export.graph.lookup import GraphIndex
from pdq_export.graph.passes import (
    constants,
    fold_affine,
    fold_batch_norm,
    fold_reshape,
    hard_sigmoid,
    normalize,
    own_weights,
    raise_opset,
    simplify,
    spatial_mean,
    spellings,
    stacked_weight,
    tidy,
    to_float32,
    vector_weights,
)
from pdq_export.spec import ChannelStatistics


class PreparationStep(enum.Enum):
    """A step of preparation: what it does, and how to export a model that does not need it."""

    INLINE = "inlining its functions", "export it without functions, or with functions of the model's own opset"
    FLOAT32 = "computing in float32", "export it in float32"
    SIMPLIFY = "simplifying it (constants, HardSwish, onnxsim)", "export it with its constants folded"
    SHAPES = "making shapes constant", "export it with fixed input shapes"
    FOLD = "folding BatchNormalization and factors into layers", "export it with BatchNormalization folded"
    OPSET = "raising its opset", "export it with the opset that is written"

    def __init__(self, what: str, remedy: str) -> None:
        self.what, self.remedy = what, remedy


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model that later stages can rely on, and what BatchNormalization knew about it.

    ``model``: constants are initializers, nodes are sorted and uniquely named, shapes are inferred as far as possible,
    BatchNormalization is folded, and weights are float32. ``statistics``: by the output tensor of the layer that a
    BatchNormalization was folded into.
    """

    model: onnx.ModelProto
    statistics: Mapping[str, ChannelStatistics]

    @functools.cached_property
    def index(self) -> GraphIndex:
        """Of the model, which nobody changes any more."""
        return GraphIndex(self.model)


def float32_reference(model: onnx.ModelProto) -> onnx.ModelProto:
    """What a quantized model is compared with: the model itself in float32, with distinct node names.

    Raises ModelError for an operator of a foreign domain.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    work = normalize.run(work)
    checks.check_domains(work)
    return to_float32.run(work)


def prepare(model: onnx.ModelProto, *, opset: int | None = None) -> PreparedModel:
    """Bring a loaded model into the form that planning, import and export rely on.

    ``model`` is not changed. Graph inputs and outputs keep their names, types and order. Results change by float
    rounding alone. ``opset``: the version to raise an older model to. Raises ModelError.
    """
    steps = prepare_in_steps(model, opset=opset)
    _, prepared = next(steps)
    for _, prepared in steps:  # noqa: B007 - the last one counts, and none before it is held any longer
        pass
    return prepared


def prepare_in_steps(
    model: onnx.ModelProto, *, opset: int | None = None
) -> Iterator[tuple[PreparationStep, PreparedModel]]:
    """What `prepare` does, one step after the other, each with the model it has made.

    The next step changes that model.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    work = normalize.run(work)
    checks.check_domains(work)
    yield PreparationStep.INLINE, PreparedModel(model=work, statistics={})
    modules, own = scopes.read(work), origins.read(work)
    work = to_float32.run(work)
    yield PreparationStep.FLOAT32, PreparedModel(model=work, statistics={})
    work = constants.run(work)
    checks.check_inference(work)
    # HardSwish first: onnxsim and fold_affine take its Add(3) apart
    one_spelling = (spellings.run, hard_sigmoid.run)
    for clean in (*one_spelling, simplify.run, constants.run, *one_spelling):
        work = clean(work)
    yield PreparationStep.SIMPLIFY, PreparedModel(model=work, statistics={})
    work = stacked_weight.run(vector_weights.run(tidy.infer_shapes(work)))
    checks.check_layers(work)
    checks.check_finite(work)
    work = fold_reshape.run(spatial_mean.run(work))
    yield PreparationStep.SHAPES, PreparedModel(model=work, statistics={})
    work, statistics = fold_batch_norm.run(own_weights.run(work))
    work, statistics = fold_affine.run(work, statistics)
    checks.check_finite(work)  # folding can leave the range of float32
    work = _restored(work, modules, own)
    yield PreparationStep.FOLD, PreparedModel(model=work, statistics=statistics)
    yield PreparationStep.OPSET, at_opset(PreparedModel(model=work, statistics=statistics), opset or 0)


def at_opset(prepared: PreparedModel, opset: int) -> PreparedModel:
    """The same model at ``opset``, if its own is older. Raises ModelError."""
    modules, own = scopes.read(prepared.model), origins.read(prepared.model)
    raised, statistics = hard_sigmoid.run(raise_opset.run(prepared.model, opset)), prepared.statistics
    work = _restored(raised, modules, own)
    for finish in (tidy.remove_unused, tidy.name_nodes, tidy.infer_shapes):
        work = finish(work)
    return PreparedModel(model=work, statistics=statistics)


def _restored(model: onnx.ModelProto, modules: Mapping[str, str], own: Mapping[str, str]) -> onnx.ModelProto:
    """The model with what its nodes said of their modules and origins before passes; made nodes say it of theirs."""
    found = origins.find(model, own)
    inherited = {name: modules[source] for name, source in found.items() if source in modules}
    return origins.write(scopes.restore(model, {**inherited, **modules}), found)
