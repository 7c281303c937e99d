import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdq_export.errors import ValidationError
from pdq_export.spec import Place
from pdq_export.validate import AccuracyMeter, AgreementMeter
from pdq_export.validate.compare import Top1Meter


def agreement(*batches):
    meter = AgreementMeter("output 'y'")
    for reference, outputs in batches:
        meter.update(np.asarray(reference, np.float32), np.asarray(outputs, np.float32))
    return meter.result()


def accuracy(outputs, labels):
    meter = AccuracyMeter()
    meter.update(np.asarray(outputs, np.float32), np.asarray(labels))
    return meter.result()


def moved(place, *batches):
    meter = AgreementMeter("output 'y'", place)
    for reference, outputs in batches:
        meter.update(reference, outputs)
    return meter.result()


@pytest.mark.parametrize("place", [Place(axis=1), Place(axis=0, outer=6), Place(axis=0, inner=6), Place(axis=2)])
def test_images_along_another_axis_are_images(place):
    """[T, N, K], [T N, K], [N T, K] and [T, K, N]: errors are those of images, over batches of unequal size."""
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((5, 6, 4), dtype=np.float32)
    outputs = floats + rng.random((5, 1, 1), dtype=np.float32) * rng.standard_normal((5, 6, 4), dtype=np.float32)

    def laid(x):
        if place.axis:
            return x.transpose((1, 0, 2) if place.axis == 1 else (1, 2, 0))
        return (x if place.inner > 1 else x.swapaxes(0, 1)).reshape(-1, 4)

    result = moved(place, *((laid(floats[part]), laid(outputs[part])) for part in (slice(3), slice(3, 5))))
    expected = agreement((floats, outputs))
    assert result.images == 5
    for name in ("relative_error", "median_relative_error", "max_relative_error"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name))
    rows = (floats.argmax(2) == outputs.argmax(2)).mean()
    assert result.argmax_agreement == (None if place.axis else pytest.approx(rows))


def test_classes_before_images():
    scores, others = np.float32([[1, 0, 0], [0, 1, 2]]), np.float32([[1, 3, 0], [0, 1, 2]])  # [K, N]
    assert moved(Place(axis=1), (scores, others)).argmax_agreement == pytest.approx(2 / 3)


def test_an_output_without_the_place_of_its_images():
    with pytest.raises(
        ValidationError, match=r"output 'y': the shape is \[7, 4\]; expected 6 rows per image along axis 0"
    ):
        moved(Place(axis=0, outer=6), (np.zeros((7, 4)), np.zeros((7, 4))))


def test_known_numbers():
    result = agreement(([[3, 0, 0], [0, 4, 0]], [[3, 0, 0], [0, 4, 5]]))
    assert result.images == 2
    assert result.argmax_agreement == 0.5
    assert result.sqnr_db == 0.0
    assert result.relative_error == 1.0
    assert result.max_relative_error == 1.25


def test_equal_outputs_have_no_noise():
    result = agreement(([[1, 2]], [[1, 2]]))
    assert (result.sqnr_db, result.relative_error, result.argmax_agreement) == (None, 0.0, 1.0)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_batches_add_up_to_the_whole(sizes, seed):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((sum(sizes), 4)).astype(np.float32)
    outputs = reference + rng.standard_normal(reference.shape).astype(np.float32) / 10
    ends = np.cumsum(sizes)[:-1]
    parts = agreement(*zip(np.split(reference, ends), np.split(outputs, ends), strict=True))
    whole = agreement((reference, outputs))
    assert parts.argmax_agreement == whole.argmax_agreement == (reference.argmax(1) == outputs.argmax(1)).mean()
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    noise = np.square(outputs.astype(np.float64) - reference).sum()
    assert whole.sqnr_db == pytest.approx(10 * math.log10(np.square(reference.astype(np.float64)).sum() / noise))
    assert whole.relative_error == pytest.approx(10 ** (-whole.sqnr_db / 20))


def test_the_median_image_is_not_ruled_by_single_ones():
    """Two images of a thousand times the others' values: right only there, and right everywhere else."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((64, 5))
    reference[[3, 40]] *= 1e3
    wrong = np.zeros_like(reference)
    wrong[[3, 40]] = reference[[3, 40]] * 1.001
    result = agreement((reference[:32], wrong[:32]), (reference[32:], wrong[32:]))
    assert result.sqnr_db > 40
    assert (result.median_relative_error, result.median_sqnr_db) == (1.0, 0.0)
    right = reference * 1.001
    right[[3, 40]] = 0
    result = agreement((reference, right))
    assert result.relative_error == pytest.approx(1.0, abs=1e-3)
    assert result.median_relative_error == pytest.approx(1e-3)
    assert result.median_sqnr_db == pytest.approx(60, abs=0.01)


@pytest.mark.parametrize(
    ("outputs", "chance"),
    [
        (lambda wanted, rng: rng.permutation(wanted), True),
        (lambda wanted, rng: np.zeros_like(wanted), True),
        (lambda wanted, rng: np.where(rng.random(len(wanted)) < 0.3, wanted, rng.permutation(wanted)), False),
        (lambda wanted, rng: wanted, False),
    ],
)
def test_agreement_by_chance(outputs, chance):
    rng = np.random.default_rng(0)
    wanted = rng.choice(3, 400, p=[0.8, 0.1, 0.1])  # so that always the first agrees at 80 %
    reference, found = (np.eye(3)[x] for x in (wanted, outputs(wanted, rng)))
    result = agreement(*zip(np.split(reference, 4), np.split(found, 4), strict=True))
    assert result.is_chance == chance
    assert 0.5 < result.chance_agreement < 0.85


def test_a_single_class_is_no_chance():
    result = agreement((np.eye(3)[[1] * 50], np.eye(3)[[1] * 50]))
    assert (result.argmax_agreement, result.chance_agreement, result.is_chance) == (1.0, 1.0, False)


def test_dense_outputs_agree_per_position():
    reference = np.zeros((1, 2, 1, 4))
    reference[0, 0] = 1
    outputs = reference.copy()
    outputs[0, 1, 0, 0] = 2
    assert agreement((reference, outputs)).argmax_agreement == 0.75


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 3, 3)])
def test_no_argmax_over_one_channel(shape):
    assert agreement((np.ones(shape), np.ones(shape))).argmax_agreement is None


def wide_agreement(reference, outputs):
    meter = AgreementMeter()
    meter.update(reference, outputs)
    return meter.result()


@pytest.mark.parametrize("reference", [0.0, 1e200])
def test_no_signal_has_no_error_in_relation_to_it(reference):
    """Zeros, and numbers whose squares leave float64."""
    result = wide_agreement(np.full((1, 2), reference), np.full((1, 2), 9 - reference))
    errors = (result.sqnr_db, result.relative_error, result.median_relative_error, result.max_relative_error)
    assert errors == (None, None, None, None)
    assert (result.has_signal, result.median_sqnr_db, result.sqnr_error_db) == (False, None, None)
    equal = wide_agreement(np.full((1, 2), reference), np.full((1, 2), reference))
    assert (equal.has_signal, equal.sqnr_db, equal.relative_error) == (True, None, 0.0)


def test_infinities_that_are_equal_count_as_equal():
    found = agreement(([[-math.inf, 2, 3]], [[-math.inf, 2, 4]]))
    finite = agreement(([[0, 2, 3]], [[0, 2, 4]]))
    assert (found.sqnr_db, found.argmax_agreement) == (finite.sqnr_db, 1.0)
    with pytest.raises(ValidationError, match="NaN or infinity"):
        agreement(([[math.inf, 2]], [[-math.inf, 2]]))


def test_unequal_shapes_and_values_that_are_not_finite():
    with pytest.raises(ValidationError, match=r"output 'y'.*\[1, 3\]; expected \[1, 2\]"):
        agreement(([[1, 2]], [[1, 2, 3]]))
    with pytest.raises(ValidationError, match=r"output 'y'.*NaN"):
        agreement(([[1, 2]], [[1, math.nan]]))


def test_top1_and_top5():
    scores = np.tile(np.arange(7.0), (4, 1))
    result = accuracy(scores, [6, 5, 2, 1])
    assert (result.images, result.top1, result.top5) == (4, 0.25, 0.75)


@given(st.integers(0, 2**32 - 1), st.integers(6, 40), st.sampled_from([1, 3, 100]))
def test_the_rank_of_a_label_is_that_in_a_stable_sort(seed, classes, values):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, values, (20, classes)).astype(np.float32)  # few values: many ties
    labels = generator.integers(0, classes, 20)
    hits = np.argsort(-scores, axis=1, kind="stable")[:, :5] == labels[:, None]
    result = accuracy(scores, labels)
    assert (result.top1, result.top5) == (hits[:, 0].mean(), hits.any(axis=1).mean())


def test_no_score_is_no_hit():
    assert accuracy(np.full((1, 6), np.nan), [0]).top5 == 0


def test_no_top5_of_five_classes():
    assert accuracy(np.eye(5), range(5)).top5 is None


def test_scores_may_have_trailing_axes_of_one():
    assert accuracy(np.eye(6).reshape(6, 6, 1, 1), range(6)).top1 == 1.0


def test_labels_that_do_not_fit():
    with pytest.raises(ValidationError, match=r"labels span \[0, 3\]; expected 0 to 2"):
        accuracy(np.eye(3)[:2], [0, 3])
    with pytest.raises(ValidationError, match=r"for 2 labels; expected \[2, classes\]"):
        accuracy(np.zeros((2, 3, 4, 4)), [0, 1])


def test_standard_errors_are_those_of_leaving_out_one_image_at_a_time():
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((200, 5)) * rng.uniform(0.5, 2, (200, 1))
    outputs = floats + rng.standard_normal((200, 5)) * rng.uniform(0.1, 0.5, (200, 1))
    found = agreement((floats[:150], outputs[:150]), (floats[150:], outputs[150:]))
    left_out = [agreement((np.delete(floats, i, 0), np.delete(outputs, i, 0))) for i in range(200)]

    def jackknife(name):
        values = np.array([getattr(one, name) for one in left_out])
        return math.sqrt(199 / 200 * np.square(values - values.mean()).sum())

    assert found.sqnr_error_db == pytest.approx(jackknife("sqnr_db"), rel=0.02)
    assert found.argmax_error == pytest.approx(jackknife("argmax_agreement"))
    assert found.positions == found.images == 200
    alone = agreement((floats[:1], outputs[:1]))
    assert (alone.sqnr_error_db, alone.argmax_error) == (None, None)


def test_positions_of_an_image_are_one_share():
    """[N, K, H, W]: two images, one that agrees everywhere and one that does nowhere."""
    scores = np.zeros((2, 2, 3, 3), np.float32)
    scores[:, 1] = 1
    others = scores.copy()
    others[1] = others[1, ::-1]
    found = agreement((scores, others))
    assert (found.images, found.positions, found.argmax_agreement) == (2, 18, 0.5)
    assert found.argmax_error == pytest.approx(0.5)


def test_integers_agree_where_they_are_equal():
    meter = AgreementMeter("output 'y'")
    meter.update(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]))
    found = meter.result()
    assert found.counted
    assert (found.argmax_agreement, found.positions, found.chance_agreement) == (0.75, 4, None)


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_images_that_change_sides_are_counted(count, seed):
    rng = np.random.default_rng(seed)
    reference, outputs = rng.integers(0, 3, (2, count, 4)).astype(np.float32)
    labels = rng.integers(0, 4, count)
    meter = Top1Meter()
    for part in (slice(count // 2), slice(count // 2, count)):
        meter.update(reference[part], outputs[part], labels[part])
    before, after = reference.argmax(1) == labels, outputs.argmax(1) == labels
    found = meter.result()
    assert (found.images, found.lost, found.gained) == (count, (before & ~after).sum(), (after & ~before).sum())
    assert found.drop == pytest.approx(100 * (before.mean() - after.mean()))
    assert Top1Meter().result() is None
