"""Images to calibrate on that are learned from a network's BatchNormalization statistics, without any data."""

from pdq_export.synthesis.learn import METHOD, Learned, Range, batch_images, learn_images, measure
from pdq_export.synthesis.statistics import Distance, usable

__all__ = ["METHOD", "Distance", "Learned", "Range", "batch_images", "learn_images", "measure", "usable"]
