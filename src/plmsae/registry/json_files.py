"""JSON objects in the folders that stages write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plmsae.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DataError: The file is missing or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path.name}' cannot be read", where=str(path), fix="run the stage that writes it") from error
    if not isinstance(data, dict):
        raise DataError(f"'{path.name}' is not a JSON object", where=str(path), fix="run the stage that writes it")
    return data
