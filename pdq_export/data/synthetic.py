"""The word that asks for images made from the model's statistics, in place of data."""

import os

SYNTHETIC = "synthetic"  # as `config` has it, which knows no data


def asks_synthetic(source: object) -> bool:
    """Whether ``source`` is that word. A file or folder of this name is `./synthetic`."""
    return isinstance(source, str) and source == SYNTHETIC


def hides_file(source: object) -> bool:
    """Whether there is a file or folder of this name as well, which is not meant."""
    return asks_synthetic(source) and os.path.lexists(SYNTHETIC)
