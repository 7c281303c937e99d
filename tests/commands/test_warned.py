"""Warnings of a run are kept for its report, and those who listen, or do not, see what they would have seen."""

import logging
import subprocess
import sys
import threading

import pytest

from pdq_export.commands.warned import Warned

LOGGER = logging.getLogger("pdq_export.somewhere")


def test_warnings_of_the_thread_once_each(caplog: pytest.LogCaptureFixture) -> None:
    with Warned() as warned:
        for text in ("one", "two", "one"):
            LOGGER.warning(text)
        LOGGER.info("not this")
        other = threading.Thread(target=LOGGER.warning, args=("another run's",))
        other.start()
        other.join()
    LOGGER.warning("afterwards")
    assert warned.texts == ("one", "two")
    assert caplog.messages == ["one", "two", "one", "another run's", "afterwards"]


def test_without_logging_set_up_warnings_are_printed_once() -> None:
    program = (
        "import logging, threading\n"
        "from pdq_export.commands.warned import Warned\n"
        "logger = logging.getLogger('pdq_export.somewhere')\n"
        "with Warned(), Warned():\n"
        "    logger.warning('ours')\n"
        "    logger.info('no warning')\n"
        "    other = threading.Thread(target=logger.warning, args=('theirs',))\n"
        "    other.start(); other.join()\n"
        "    logging.getLogger().addHandler(logging.NullHandler())\n"
        "    logger.warning('handled elsewhere')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["ours", "theirs"]
