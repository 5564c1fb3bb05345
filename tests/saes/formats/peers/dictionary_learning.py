"""Run by the Python of an environment with dictionary_learning, in the folder of `test_peers.py`'s exchange.

`ours/*` is loaded with the library's own `load_dictionary`; `theirs/*` is trained by its `trainSAE`, which saves it,
on activations divided by the norm factor and on raw ones. What both compute on x is written to `answers.safetensors`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import get_norm_factor, trainSAE
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

D, N, K, STEPS = 12, 40, 5, 150
SCALE = 7.5


def data() -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield SCALE * torch.randn(256, D, generator=generator)


def answers(folder: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.iterdir()):
        dictionary, _ = load_dictionary(str(path), "cpu")
        with torch.no_grad():
            z = dictionary.encode(x)
            found[f"{folder.name}/{path.name}/z"] = z.contiguous()
            found[f"{folder.name}/{path.name}/x_hat"] = dictionary.decode(z).contiguous()
    return found


def train(name: str, normalize: bool, **trainer: Any) -> None:
    common = {"steps": STEPS, "activation_dim": D, "dict_size": N, "layer": 3, "lm_name": "esm2", "seed": 0}
    common |= {"device": "cpu", "warmup_steps": 10, "submodule_name": "residual", **trainer}
    trainSAE(
        data(), [common], STEPS, save_dir=f"train/{name}", normalize_activations=normalize, device="cpu"
    )  # ends as train/<name>/trainer_0
    Path(f"train/{name}/trainer_0").rename(f"theirs/{name}")


if __name__ == "__main__":
    Path("theirs").mkdir()
    thresholded = {"k": K, "threshold_start_step": 20}
    for normalize in (False, True):
        for name, trainer in {
            "AutoEncoder": {"trainer": StandardTrainer, "sparsity_warmup_steps": 10},
            "AutoEncoderTopK": {"trainer": TopKTrainer, "k": K},
            "BatchTopKSAE": {"trainer": BatchTopKTrainer, **thresholded},
            "MatryoshkaBatchTopKSAE": {
                "trainer": MatryoshkaBatchTopKTrainer, "group_fractions": [0.25, 0.25, 0.5], **thresholded,
            },
            "JumpReluAutoEncoder": {"trainer": JumpReluTrainer, "sparsity_warmup_steps": 10, "lr": 1e-2},
            "GatedAutoEncoder": {"trainer": GatedSAETrainer, "sparsity_warmup_steps": 10},
        }.items():  # fmt: skip
            train(name + ("-normalised" if normalize else ""), normalize, **trainer)
    torch.manual_seed(0)
    new = AutoEncoderNew(D, N)
    torch.nn.init.normal_(new.encoder.bias)
    Path("theirs/AutoEncoderNew").mkdir()
    torch.save(new.state_dict(), "theirs/AutoEncoderNew/ae.pt")
    config = {"trainer": {"dict_class": "AutoEncoderNew", "activation_dim": D, "dict_size": N}, "buffer": {}}
    Path("theirs/AutoEncoderNew/config.json").write_text(json.dumps(config))
    found = answers(Path("ours"), load_file("x.safetensors")["x"])
    found |= answers(Path("theirs"), load_file("x.safetensors")["theirs"])
    found["norm_factor"] = torch.tensor(get_norm_factor(data(), steps=100))
    save_file(found, "answers.safetensors")
