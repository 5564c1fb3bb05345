from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from plmsae.validation.engine import run_suite
from plmsae.validation.suites import splits_suite

SCRIPT = """
import socket
def refuse(*arguments, **named):
    raise OSError("no network here")
socket.socket.connect = refuse
import pandas as pd
from plmsae.validation.store import require_sound_store
require_sound_store(pd.DataFrame({"chunk": ["a"], "num_rows": [1], "num_nonfinite": [0], "mean_norm": [1.0]}),
                    num_rows=1, where="")
import os
assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
"""


def test_it_is_quiet_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """No output, no files in the home or working folder, no connection; whatever the environment says."""
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "GX_ANALYTICS_ENABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []


def test_findings_keep_the_order_of_the_suite() -> None:
    frame = pd.DataFrame(
        {"split": ["train"], "num_proteins": [3], "cluster_fraction": [0.5], "low": [0.4], "high": [0.6]}
    )
    suite = splits_suite(min_proteins=4)
    findings = run_suite(suite, frame)
    assert [finding.rule for finding in findings] == list(suite.rules)
    assert [finding.passed for finding in findings] == [False, True, True]
    assert findings[0].examples == ("train (num_proteins=3)",)
    assert findings[0].as_json()["column"] == "num_proteins"
