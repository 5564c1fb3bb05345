"""Run by the Python of an environment with sparsify, in the folder of `test_peers.py`'s exchange.

`ours/*` is loaded with `SparseCoder.load_from_disk`; `theirs/*` is made by its constructor, with random biases, and
written by its `save_to_disk`. What both compute on x is written to `answers.safetensors`.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D, N, K = 12, 40, 5


def answers(folder: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.iterdir()):
        coder = SparseCoder.load_from_disk(path)
        with torch.no_grad():
            values, indices, _ = coder.encode(x)
            z = torch.zeros(len(x), N).scatter(1, indices, values)
            found[f"{folder.name}/{path.name}/z"] = z
            found[f"{folder.name}/{path.name}/x_hat"] = coder.decode(values, indices)
            if not coder.cfg.multi_topk:  # with it, forward returns the reconstruction of 4 k latents
                assert torch.equal(coder(x).sae_out, coder.decode(values, indices))
    return found


if __name__ == "__main__":
    torch.manual_seed(3)
    for name, config in {
        "num_latents": SparseCoderConfig(num_latents=N, k=K),
        "multi_topk": SparseCoderConfig(num_latents=N, k=K, multi_topk=True, normalize_decoder=False),
    }.items():
        coder = SparseCoder(D, config)
        with torch.no_grad():
            coder.encoder.bias.normal_()
            coder.b_dec.normal_()
        coder.save_to_disk(f"theirs/{name}")
    found = answers(Path("ours"), load_file("x.safetensors")["x"])
    found |= answers(Path("theirs"), load_file("x.safetensors")["theirs"])
    save_file(found, "answers.safetensors")
