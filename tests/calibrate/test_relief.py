"""Where a device's memory runs out: what is tried in which order, and that the result is whole or there is none."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from pdq_export.calibrate.cache import Store
from pdq_export.calibrate.forward import run_forward
from pdq_export.calibrate.relief import with_relief
from pdq_export.calibrate.step import Step
from pdq_export.errors import ResourceError
from tests.calibrate.networks import calibrate_example, residual
from tests.calibrate.test_second_device import OPTIONS, same, there
from tests.second_device import DEVICE, second_device

TOLD = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.00 GiB"
FEW = dataclasses.replace(OPTIONS, compensate_rounding=False)
pytestmark = pytest.mark.usefixtures("short_search")


@contextlib.contextmanager
def memory_that_runs_out(fits: Callable[[Step, Store], bool]) -> Iterator[list[tuple[int, set[str]]]]:
    """Steps fail for as long as they do not fit; by attempt, the pieces of the rest and where caches lie."""
    attempts: list[tuple[int, set[str]]] = []
    stores: list[Store] = []
    objective, made = Step._objective, Store.__init__

    def watched(self: Store, *arguments: Any, **keywords: Any) -> None:
        made(self, *arguments, **keywords)
        stores.append(self)

    def limited(self: Step, *arguments: Any) -> Any:
        result = objective(self, *arguments)  # after the masks have been drawn
        attempts.append((self._pieces, {tier for tier, used in stores[-1].used.items() if used}))
        if not fits(self, stores[-1]):
            raise torch.OutOfMemoryError(TOLD)
        return result

    with mock.patch.object(Step, "_objective", limited), mock.patch.object(Store, "__init__", watched):
        yield attempts


def test_smaller_pieces_of_the_rest_come_first() -> None:
    expected = calibrate_example(residual(images=32), FEW)
    with second_device(), memory_that_runs_out(lambda step, _: step._model.rest is None or step._pieces >= 4) as tried:
        found = there(residual(images=32), FEW)
    assert [pieces for pieces, _ in tried[:3]] == [1, 2, 4]
    assert all("device" in tiers for _, tiers in tried)
    assert same(found, expected)


def test_then_caches_move_to_the_host() -> None:
    expected = calibrate_example(residual(images=32), FEW)
    with second_device(), memory_that_runs_out(lambda _, store: not store.used["device"]) as tried:
        found = there(residual(images=32), FEW)
    pieces = [pieces for pieces, _ in tried[:6]]
    assert pieces == [1, 2, 4, 8, 16, 16]
    assert [tiers for _, tiers in tried[4:6]] == [{"device"}, {"host"}]
    assert all(tiers == {"host"} for _, tiers in tried[5:])
    assert same(found, expected)


def test_then_the_run_ends_with_what_would_help() -> None:
    with (
        second_device(),
        memory_that_runs_out(lambda *_: False) as tried,
        pytest.raises(ResourceError, match=r"a step on 16 images.*2\.00 GiB.*--set batch_size=8\)"),
    ):
        there(residual(images=32), FEW)
    assert len(tried) == 6


def test_a_cpu_tries_nothing() -> None:
    """What a run gives must not depend on what else takes memory."""
    with memory_that_runs_out(lambda *_: False) as tried, pytest.raises(torch.OutOfMemoryError):
        calibrate_example(residual(images=32), FEW)
    assert len(tried) == 1


def test_pieces_give_the_gradients_of_the_whole() -> None:
    seen: dict[int, Any] = {}
    gradients = Step._gradients

    def compared(self: Step, *arguments: Any) -> Any:
        state = self._model.masks.get_state()
        for pieces in (1, 3):
            self._model.masks.set_state(state)
            self._pieces = pieces
            seen[pieces] = gradients(self, *arguments)
        self._pieces = 1
        for one, other in zip(seen[1][2], seen[3][2], strict=True):
            torch.testing.assert_close(one, other)
        return seen[1]

    with mock.patch.object(Step, "_gradients", compared):
        calibrate_example(residual(images=32), FEW)
    assert seen


def test_a_pass_is_tried_again_with_caches_on_the_host() -> None:
    example = residual(images=16)
    x = example.images
    with second_device():
        store = Store(DEVICE, device_bytes=2**30, host_bytes=None)
        cache = store.new(x.shape, x.dtype)
        cache.append(x.to(DEVICE))
        network, calls = example.network.to(DEVICE), []

        def fails_once(*inputs: torch.Tensor) -> Any:
            calls.append(cache.tier)
            if len(calls) == 1:
                raise torch.OutOfMemoryError(TOLD)
            return network(*inputs)

        outputs = run_forward(fails_once, [cache], ["y"], store)  # type: ignore[arg-type]
        assert calls == ["device", "host"]
        assert outputs["y"].tier == "host"
        found = outputs["y"].slice(0, 16).cpu()
    assert torch.equal(found, residual(images=16).network(x)[0])


def test_other_errors_are_not_tried_again() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        with_relief(fails, [lambda: pytest.fail("tried")])
