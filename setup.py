"""Packages of pdq-export; everything else is in pyproject.toml.

`cli/` and `calib_data/` lie at the top level of the tree and are installed below `pdq_export`, so that no top-level
module of such a common name is left in anybody's site-packages.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pdq_export", "pdq_export.*"]), "pdq_export.cli", "pdq_export.calib_data"],
    package_dir={"pdq_export.cli": "cli", "pdq_export.calib_data": "calib_data"},
)
