"""Marks of the tests that run containers: one worker runs them all, and the first may have to build the image."""

import pytest

CONTAINERS = [
    pytest.mark.containers,
    pytest.mark.slow,
    pytest.mark.xdist_group("containers"),
    pytest.mark.timeout(2400),
]
