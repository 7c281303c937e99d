"""Calibration and evaluation data: arrays, .npz, .npy, folders of images, loaders and other iterables, functions."""

from pdq_export.data.digest import sha256_by_input
from pdq_export.data.function import names_function
from pdq_export.data.image_set import ImageSet
from pdq_export.data.input_set import InputSet
from pdq_export.data.input_spec import InputSpec
from pdq_export.data.known import KnownLabels, known_labels
from pdq_export.data.load import DataSource, check_exists, check_form, find_default, load_images, load_inputs, read_data
from pdq_export.data.outliers import find_outliers
from pdq_export.data.overlap import all_equal, count_shared, count_shared_digests, image_digests
from pdq_export.data.preprocess import Preprocess
from pdq_export.data.samples import Data, Samples, classes_of, pair_samples, read_samples, whole_batches

__all__ = [
    "Data",
    "DataSource",
    "ImageSet",
    "InputSet",
    "InputSpec",
    "KnownLabels",
    "Preprocess",
    "Samples",
    "all_equal",
    "check_exists",
    "check_form",
    "classes_of",
    "count_shared",
    "count_shared_digests",
    "find_default",
    "find_outliers",
    "image_digests",
    "known_labels",
    "load_images",
    "load_inputs",
    "names_function",
    "pair_samples",
    "read_data",
    "read_samples",
    "sha256_by_input",
    "whole_batches",
]
