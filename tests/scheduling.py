"""Which tests share a worker when pytest runs in several processes.

pytest-xdist 3.8 hands `xdist_group` marks to its scheduler through an attribute that pytest 9.2 no longer has, so the
marks are ignored and every worker makes the expensive fixtures of a folder again. Here the groups go by path.
"""

from __future__ import annotations

from typing import Any

import pytest

# The first that matches counts. The groups share fixtures that take a minute or more.
GROUPS = (
    ("tests/containers/", "containers"),
    ("tests/pipeline/test_kubeflow.py", "kubeflow"),
    ("tests/pipeline/", "pipeline"),
)


def group(nodeid: str) -> str:
    """The group of a test; a test of no group is one of its own."""
    return next((name for start, name in GROUPS if nodeid.startswith(start)), nodeid)


class GroupPlugin:
    """Registered by `tests/conftest.py` where pytest-xdist is in use."""

    @pytest.hookimpl
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        from xdist.scheduler import LoadScopeScheduling

        class ByPath(LoadScopeScheduling):
            def _split_scope(self, nodeid: str) -> str:
                return group(nodeid)

        return ByPath(config, log)
