"""One of several processes that do the trainings of `ranks.py` with their share of the rows.

`python -m tests.training.rank FOLDER` writes what came out to `FOLDER/<rank>.safetensors`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from plmsae import collector


def main(folder: Path) -> None:
    from safetensors.torch import save_file

    from plmsae.training.group import joined
    from tests.training.ranks import everything

    with joined("cpu") as ranks:
        results = everything(ranks, folder / "ranks")
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, folder / f"{ranks.rank}.safetensors")
    (folder / f"{ranks.rank}.json").write_text(json.dumps({"size": ranks.size}))


if __name__ == "__main__":
    collector.spare()
    main(Path(sys.argv[1]))
