"""How MLflow serves a registered SAE: this file is copied into the MLflow model and run by its pyfunc loader.

Input: float32 [N, d_model], raw activations of the PLM, layer and hook that the card names. Output: float32
[N, dictionary_size], the latents. plmsae itself reads the package and never runs this file. plmsae must be installed
where it is served; it is not in the model's requirements because no package index is known to hold it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.models import set_model

from plmsae.registry.load import load_folder


class SaeModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Encodes activations with the packaged SAE."""

    def load_context(self, context: Any) -> None:
        """Read and verify the package."""
        self.sae = load_folder(Path(context.artifacts["package"]))

    def predict(self, model_input: np.ndarray) -> np.ndarray:
        """Latents, float32 [N, dictionary_size]."""
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(model_input, dtype=np.float32))
            return self.sae.encode(rows).numpy()


set_model(SaeModel())
