"""Run by the Python of an environment with SAELens, in the folder of `test_peers.py`'s exchange.

`ours/*` is loaded with `SAE.load_from_disk`; `theirs/*` is made from its training classes with random weights and
written by their `save_inference_model`. What both compute on x is written to `answers.safetensors`.
"""

from pathlib import Path

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from safetensors.torch import load_file, save_file

D, N, K = 12, 40, 5
FOLDED = 0.25
SIZES = {"d_in": D, "d_sae": N}


def answers(folder: Path, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.iterdir()):
        sae = SAE.load_from_disk(path)
        with torch.no_grad():
            z = sae.encode(x)
            found[f"{folder.name}/{path.name}/z"] = z.contiguous()
            found[f"{folder.name}/{path.name}/x_hat"] = sae.decode(z).contiguous()
    return found


def make(name: str, sae: torch.nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for key, parameter in sae.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise.abs() if "threshold" in key else noise)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.4)
    if "folded" in name:
        sae.fold_activation_norm_scaling_factor(FOLDED)
    sae.save_inference_model(f"theirs/{name}")


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(2)
    for mode in ("none", "layer_norm", "constant_norm_rescale"):
        for pre_bias in (True, False):
            options = {**SIZES, "normalize_activations": mode, "apply_b_dec_to_input": pre_bias}
            end = f"-{mode}-{pre_bias}"
            standard = StandardTrainingSAE(StandardTrainingSAEConfig(**options))
            make(f"standard{end}", standard, generator)
            make(f"gated{end}", GatedTrainingSAE(GatedTrainingSAEConfig(**options)), generator)
            make(f"jumprelu{end}", JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**options)), generator)
            for rescale in (True, False):
                by_norm = {**options, "k": K, "rescale_acts_by_decoder_norm": rescale}
                make(f"topk-{rescale}{end}", TopKTrainingSAE(TopKTrainingSAEConfig(**by_norm)), generator)
                batch = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**by_norm))
                make(f"batchtopk-{rescale}{end}", batch, generator)
    options = {**SIZES, "k": K, "normalize_activations": "expected_average_only_in"}
    make("topk-folded", TopKTrainingSAE(TopKTrainingSAEConfig(**options)), generator)
    make("batchtopk-folded", BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**options)), generator)
    nested = MatryoshkaBatchTopKTrainingSAEConfig(**SIZES, k=K, matryoshka_widths=[4, 16, 40])
    make("matryoshka", MatryoshkaBatchTopKTrainingSAE(nested), generator)
    found = answers(Path("ours"), load_file("x.safetensors")["x"])
    found |= answers(Path("theirs"), load_file("x.safetensors")["theirs"])
    save_file(found, "answers.safetensors")
