"""Whether a figure can be chance."""

from scipy import stats

from pdq_export.validate import Agreement, Top1Changes


def mcnemar(changes: Top1Changes) -> float:
    """The two-sided p-value of McNemar's exact test: that lost and gained images differ so much by chance."""
    changed = changes.lost + changes.gained
    return float(stats.binomtest(changes.lost, changed, 0.5).pvalue) if changed else 1.0


def agreement_below(agreement: Agreement, limit: float) -> float:
    """The one-sided p-value of an agreement like this or a smaller one where the true share is ``limit``.

    Exact, as Clopper and Pearson's bounds are, where an image has one argmax. Where it has several, as in segmentation,
    these do not count as independent: then by Student's t of the images' shares.
    """
    assert agreement.argmax_agreement is not None
    if agreement.positions != agreement.images:
        return mean_below(agreement.argmax_agreement, agreement.argmax_error, agreement.images, limit)
    equal = round(agreement.argmax_agreement * agreement.images)
    return float(stats.binomtest(equal, agreement.images, limit, alternative="less").pvalue)


def mean_below(value: float, error: float | None, images: int, limit: float) -> float:
    """The one-sided p-value of ``value``, with its standard ``error`` over images, where the true one is ``limit``.

    1 where there is no error to tell, and 0 or 1 where it is 0.
    """
    if not error:
        return 0.0 if error is not None and value < limit else 1.0
    return float(stats.t.cdf((value - limit) / error, images - 1))
