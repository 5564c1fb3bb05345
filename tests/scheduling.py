"""Which tests share a worker when pytest runs in several processes, and what begins first.

Tests of one file stay together: most expensive fixtures are those of a file, and every worker that gets one of its
tests makes them again. (pytest-xdist 3.8 hands `xdist_group` marks to its scheduler through an attribute that pytest
9.2 no longer has, so groups go by path here.)
"""

from __future__ import annotations

from typing import Any

import pytest

# Folders whose files share fixtures that take a minute or more.
FOLDERS = ("tests/containers/",)
# Files elsewhere that belong to such a folder. podman cannot list images while another process builds or removes one.
MEMBERS = {"tests/k8s/test_in_containers.py": "tests/containers/"}
# What takes longest begins first, so that the workers end together; the others follow in their order. The first of
# tests/pipeline makes what all of them share, and meanwhile the other worker has something else to do.
FIRST = (
    "tests/containers/",
    "tests/pipeline/test_dvc.py",
    "tests/training/test_launch.py",
    "tests/training/test_data_parallel.py",
    "tests/pipeline/test_kubeflow.py",
    "tests/pipeline/test_kill.py",
    "tests/pipeline/test_sweep.py",
    "tests/pipeline/test_evaluations.py",
    "tests/stages/test_s3_store.py",
    "tests/cluster/test_compile.py",
    "tests/stages/test_sweep.py",
)


def group(nodeid: str) -> str:
    """The group of a test: its folder if that is one of `FOLDERS`, and its file otherwise."""
    file = nodeid.partition("::")[0]
    return MEMBERS.get(file) or next((folder for folder in FOLDERS if file.startswith(folder)), file)


class GroupPlugin:
    """Registered by `tests/conftest.py` where pytest-xdist is in use."""

    @pytest.hookimpl
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        from xdist.scheduler import LoadScopeScheduling

        class ByPath(LoadScopeScheduling):
            def _split_scope(self, nodeid: str) -> str:
                return group(nodeid)

            def _assign_work_unit(self, node: Any) -> None:
                first = next((name for name in FIRST if name in self.workqueue), None)
                if first is not None:
                    self.workqueue.move_to_end(first, last=False)
                super()._assign_work_unit(node)

        return ByPath(config, log)
