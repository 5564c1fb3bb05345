"""Settings for all tests: one thread, no telemetry, no network look-ups by model hubs, no logging left behind.

And few searches of the garbage collector: a worker of pytest holds more objects than any process of ours.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from plmsae import collector
from tests.s3server import s3, s3_server
from tests.scheduling import GroupPlugin

__all__ = ["s3", "s3_server"]  # fixtures

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["GX_ANALYTICS_ENABLED"] = "false"
os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ.pop("MLFLOW_TRACKING_URI", None)
collector.spare()


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and what tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("dist", "no") == "loadgroup":
        config.pluginmanager.register(GroupPlugin())


@pytest.fixture(autouse=True)
def _no_logging_left_behind() -> Iterator[None]:
    """The command line logs to the stderr of its test, which is closed when the next one logs."""
    yield
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("plmsae").setLevel(logging.NOTSET)
