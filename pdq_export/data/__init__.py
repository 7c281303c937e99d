"""Calibration and evaluation images: arrays (.npz, .npy) and folders of image files."""

from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_spec import InputSpec
from pdq_export.data.load import find_default, load_images

__all__ = ["ImageSet", "InputSpec", "find_default", "load_images"]
