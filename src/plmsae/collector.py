"""Fewer searches of Python's garbage collector, in processes that are ours from start to end.

Imports of torch, Lightning and MLflow leave half a million objects that live until the end. Python searches all of them
every time their number has grown by a quarter, and again at the end: a third of the CPU time of a short process.
"""

from __future__ import annotations

import atexit
import gc

# Young and middle-aged objects, among them nearly every cycle that holds tensors, are searched as often as by default.
_THRESHOLDS = (700, 10, 100)


def spare() -> None:
    """Search old objects a tenth as often, and none of them when the process ends.

    Call it where a process begins. What must happen at the end belongs to `atexit` or a context manager: finalisers of
    cycles that are left over do not run then, which Python does not promise anyway.
    """
    gc.set_threshold(*_THRESHOLDS)
    atexit.register(gc.freeze)
