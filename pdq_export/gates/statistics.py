"""Whether a figure can be chance: p-values, small where it hardly is, None where nothing tells."""

import math

import scipy  # its `stats` takes a second to import: here, once something is asked of it

from pdq_export.validate import Agreement, Top1Changes


def mcnemar(changes: Top1Changes) -> float:
    """The two-sided p-value of McNemar's exact test: that lost and gained images differ so much by chance."""
    changed = changes.lost + changes.gained
    return float(scipy.stats.binomtest(changes.lost, changed, 0.5).pvalue) if changed else 1.0


def share_bounds(share: float, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact bounds of a share of ``images``, as Clopper and Pearson's are."""
    found = scipy.stats.binomtest(round(share * images), images).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def drop_beyond(changes: Top1Changes, limit: float) -> float:
    """The one-sided p-value of a drop like this or a larger one where the true one is ``limit``, a share of images.

    By Tango's score test of a paired difference (Statistics in Medicine 17, 1998): with n images, b lost and c gained,
    z = (b - c - n d) / sqrt(n (2 q + d (1 - d))), where d is the limit and q the likeliest share of gained images at
    that limit, the larger root of 2n q^2 - (b + c - (2n - b + c) d) q - c d (1 - d) = 0. At a limit of 0 it is
    McNemar's test. It holds for many images; so that few do not seem to tell what they cannot, the p-value is no
    smaller than that of McNemar's exact test, one-sided, that there is no drop at all.
    """
    n, b, c = changes.images, changes.lost, changes.gained
    beyond = b - c - n * limit
    if beyond <= 0:
        return 1.0
    middle, last = b + c - (2 * n - b + c) * limit, c * limit * (1 - limit)
    gained = (middle + math.sqrt(middle * middle + 8 * n * last)) / (4 * n)
    variance = n * (2 * gained + limit * (1 - limit))
    score = float(scipy.stats.norm.sf(beyond / math.sqrt(variance)))
    return max(score, float(scipy.stats.binomtest(b, b + c, 0.5, alternative="greater").pvalue))


def smallest_drop(images: int, limit: float) -> float:
    """The smallest p-value of `drop_beyond` that so many images can have: where all are lost."""
    return drop_beyond(Top1Changes(images=images, lost=images, gained=0), limit)


def agreement_below(agreement: Agreement, limit: float) -> float | None:
    """The one-sided p-value of an agreement like this or a smaller one where the true share is ``limit``.

    Exact, as Clopper and Pearson's bounds are, where an image has one argmax. Where it has several, as in segmentation,
    these do not count as independent: then by Student's t of the images' shares.
    """
    assert agreement.argmax_agreement is not None
    if agreement.positions != agreement.images:
        return mean_below(agreement.argmax_agreement, agreement.argmax_error, agreement.images, limit)
    equal = round(agreement.argmax_agreement * agreement.images)
    return float(scipy.stats.binomtest(equal, agreement.images, limit, alternative="less").pvalue)


def smallest_agreement(agreement: Agreement, limit: float) -> float:
    """The smallest p-value of `agreement_below` that so many images can have: where none agrees."""
    return (1 - limit) ** agreement.images if agreement.positions == agreement.images else 0.0


def mean_below(value: float, error: float | None, images: int, limit: float) -> float | None:
    """The one-sided p-value of ``value``, with its standard ``error`` over images, where the true one is ``limit``.

    None where there is no error to tell, as of a single image, and 0 or 1 where it is 0.
    """
    if error is None:
        return None
    if not error:
        return 0.0 if value < limit else 1.0
    return float(scipy.stats.t.cdf((value - limit) / error, images - 1))
