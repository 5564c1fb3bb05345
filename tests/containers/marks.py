"""Marks of the tests that run containers; the first may have to build the image."""

import pytest

CONTAINERS = [
    pytest.mark.containers,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
]
