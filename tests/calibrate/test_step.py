"""One step: Adam to the bit, batches left as they are, and nothing that waits for a device."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pdq_export.calibrate.quantizers import ActivationQuantizer, DroppingQuantizer, SoftRounding, weight_qparams
from pdq_export.calibrate.schedule import Schedule
from pdq_export.calibrate.step import Batch, BlockModel, LearnedScale, Step
from pdq_export.config.method import CalibrationOptions
from pdq_export.numerics.affine import bernoulli_like
from pdq_export.numerics.rounding import rounding_regularizer
from pdq_export.numerics.search import choose_activation_qparams
from pdq_export.spec import Point, Role
from tests.thread_ranks import on_ranks

CPU = torch.device("cpu")
OPTIONS = CalibrationOptions(iters=25, prediction_interval=2, rounding_lr=0.05, scale_lr=4e-4)
RATE = 4e-4


class Linear(nn.Module):
    """y = quantized(x w), a tuple as blocks give it."""

    def __init__(self, weight: SoftRounding, quantizer: nn.Module) -> None:
        super().__init__()
        self.weight, self.quantizer = weight, quantizer

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.quantizer(x @ self.weight()),)


class Square(nn.Module):
    """The rest of a network, with a tensor that bypasses the block."""

    def forward(self, x: Tensor, beside: Tensor) -> tuple[Tensor]:
        return (x.square() + beside,)


@dataclasses.dataclass
class Example:
    """A block of one layer that learns, in the state before its first step."""

    weight: SoftRounding
    quantizer: ActivationQuantizer
    model: BlockModel
    learned: LearnedScale
    batch: Batch


def example(unit: float = 1.0) -> Example:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 4, generator=generator), torch.randn(4, 3, generator=generator)
    point = Point(tensor="w", role=Role.WEIGHT, bits=2, axis=1)
    weight = SoftRounding(point, w, weight_qparams(w, point))
    out = Point(tensor="y", role=Role.ACTIVATION, bits=2)
    quantizer = ActivationQuantizer(out, choose_activation_qparams(x @ w, 2))
    scale = quantizer.scale.requires_grad_(True)
    masks = torch.Generator().manual_seed(1)
    return Example(
        weight=weight,
        quantizer=quantizer,
        model=BlockModel(
            student=Linear(weight, DroppingQuantizer(quantizer, 0.5, masks)),
            rest=Square(),
            class_axes=[1],
            weights=[weight],
            masks=masks,
        ),
        learned=LearnedScale(scale=quantizer.scale, unit=unit, low=scale.detach() / 2, high=scale.detach() * 2),
        batch=Batch(quantized=[x.round()], corrected=[x], wanted=[x @ w], bypass=[x[:, :3]], predictions=[x @ w]),
    )


def step_of(one: Example) -> Step:
    return Step(one.model, [one.learned], [1.0], mix_probability=0.5, temperature=4.0)


def schedule() -> Schedule:
    return Schedule.of(OPTIONS, [RATE], predicts=True, device=CPU)


def test_steps_are_those_of_torchs_own_adam() -> None:
    """To the bit: the same terms by hand, torch.optim.Adam and the schedule's cosine as a number."""
    ours, theirs = example(), example()
    step, numbers = step_of(ours), schedule()
    rounding = torch.optim.Adam([theirs.weight.alpha], lr=OPTIONS.rounding_lr)
    scales = torch.optim.Adam([theirs.quantizer.scale], lr=RATE)
    x_q, x_c = theirs.batch.quantized[0], theirs.batch.corrected[0]
    for number in range(OPTIONS.iters):
        without = dataclasses.replace(numbers.numbers(number), prediction_weight=None)
        error, loss = step(ours.batch, without)
        mixed = torch.lerp(x_c, x_q, bernoulli_like(x_q, 0.5, theirs.model.masks))
        (y,) = theirs.model.student(mixed)
        by_hand = wanted = (y - theirs.batch.wanted[0]).square().sum(1).mean()
        if number >= OPTIONS.warmup * OPTIONS.iters:
            progress = (number - 5) / 20
            exponent = torch.tensor(20.0 - 18.0 * progress)
            by_hand = wanted + OPTIONS.rounding_weight * rounding_regularizer(theirs.weight.h(), exponent)
        for optimizer in (rounding, scales):
            optimizer.zero_grad()
        by_hand.backward()
        scales.param_groups[0]["lr"] = RATE * (1.0 + math.cos(math.pi * number / OPTIONS.iters)) / 2.0
        for optimizer in (rounding, scales):
            optimizer.step()
        assert (error.item(), loss.item()) == (wanted.item(), by_hand.item())
        assert torch.equal(ours.weight.alpha, theirs.weight.alpha)
        assert torch.equal(ours.quantizer.scale, theirs.quantizer.scale)


def test_a_step_leaves_its_batch_as_it_is() -> None:
    one = example()
    fields = [field.name for field in dataclasses.fields(Batch)]
    before = [x.clone() for name in fields for x in getattr(one.batch, name)]
    step_of(one)(one.batch, schedule().numbers(0))
    after = [x for name in fields for x in getattr(one.batch, name)]
    assert all(map(torch.equal, before, after))


class NoHostReads(TorchDispatchMode):
    """Fails where the host would have to wait for a device to know a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in HOST_READS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


HOST_READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
)


def test_what_the_check_of_host_reads_finds() -> None:
    for read in (Tensor.item, Tensor.nonzero, bool):
        with pytest.raises(AssertionError, match="waits for the device"), NoHostReads():
            read(torch.ones(()))


@pytest.mark.parametrize("number", [0, 1, 24])
def test_a_step_waits_for_nothing(number: int) -> None:
    """With and without the prediction difference, before and after the warm-up."""
    one = example()
    step, numbers = step_of(one), schedule().numbers(number)
    assert (numbers.prediction_weight is None) == (number == 1)
    assert (numbers.exponent is None) == (number < 5)
    with NoHostReads():
        step(one.batch, numbers)


@pytest.mark.parametrize("rate", [100.0, -100.0])
def test_a_scale_stays_within_its_bounds(rate: float) -> None:
    one = example()
    start = one.quantizer.scale.item()
    far = dataclasses.replace(schedule().numbers(0), scale_rates=[torch.tensor(rate)])
    step_of(one)(one.batch, far)
    assert one.quantizer.scale.item() / start in (0.5, 2.0)


def test_a_gradient_counts_in_the_units_of_its_scale() -> None:
    """Adam forgets the size of a gradient but for its epsilon: in tiny units that is all there is."""
    moved = {}
    for unit in (1.0, 2.0**-60):
        one = example(unit)
        start = one.quantizer.scale.item()
        step_of(one)(one.batch, schedule().numbers(0))
        moved[unit] = abs(one.quantizer.scale.item() - start)
    assert moved[1.0] == pytest.approx(RATE, rel=1e-3)
    assert moved[2.0**-60] < 1e-3 * RATE


@pytest.mark.parametrize("axis", [1, None])
def test_shares_of_a_batch_take_the_step_of_the_whole(axis: int | None) -> None:
    """Nothing is dropped or mixed; predictions are compared by classes, and by squares over the whole's."""

    def changed(rank: int, size: int) -> Example:
        one = example()
        model = dataclasses.replace(one.model, class_axes=[axis], student=Linear(one.weight, one.quantizer))
        rows = {name: [x[rank::size] for x in values] for name, values in vars(one.batch).items()}
        return dataclasses.replace(one, model=model, batch=Batch(**rows))

    def stepped(one: Example, **ranks: Any) -> tuple[Tensor, ...]:
        step = Step(one.model, [one.learned], [1.0], mix_probability=1.0, temperature=4.0, **ranks)
        found = [step(one.batch, schedule().numbers(number)) for number in range(2)]
        return (*found[0], *found[1], one.weight.alpha.detach(), one.quantizer.scale.detach())

    wanted = stepped(changed(0, 1))
    parts = [changed(rank, 3) for rank in range(3)]
    for found in on_ranks(3, lambda ranks: stepped(parts[ranks.rank], ranks=ranks, weight=ranks.share_of(8) / 8)):
        for value, whole in zip(found, wanted, strict=True):
            torch.testing.assert_close(value, whole, rtol=1e-4, atol=1e-5)
