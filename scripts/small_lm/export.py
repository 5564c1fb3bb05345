"""The model as it is shipped: float16 safetensors and a config that says float32 for the computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from plmsae.artifacts.atomic import write_bytes, write_text


def export(model: Any, folder: Path) -> None:
    """Write `model.safetensors` (float16) and `config.json` of an `EsmForMaskedLM`.

    The head's output matrix is the embedding (tied) and is stored once, as transformers does. `dtype` stays float32 in
    the config: the weights are stored in half, the computation is not.
    """
    tensors = {name: parameter.detach().half().contiguous() for name, parameter in model.named_parameters()}
    for name, value in model.state_dict().items():
        if name not in tensors and name != "lm_head.decoder.weight":
            tensors[name] = value.contiguous()  # the rotary frequencies: in half, far positions would turn wrongly
    write_bytes(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    config = {**model.config.to_dict(), "architectures": ["EsmForMaskedLM"], "dtype": "float32"}
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
