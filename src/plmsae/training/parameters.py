"""Parameters of `train_sae`: what may be set, and what goes with which architecture. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from plmsae.errors import UserError, did_you_mean
from plmsae.params import Params
from plmsae.saes import trainable_architectures
from plmsae.training.presets import PRESETS, recipe

# Parameters that only some architectures have; set for another one they are refused rather than ignored.
SELECTS_K = ("batch_topk", "matryoshka", "topk")
PENALISED = ("gated", "jump_relu", "l1_april", "relu")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "aux_alpha": SELECTS_K,
    "aux_k": SELECTS_K,
    "penalty": PENALISED,
    "penalty_warmup_fraction": PENALISED,
    "reconstruction": ("relu",),
    "target_l0": ("jump_relu",),
    "l0_control": ("jump_relu",),
    "threshold_learning_rate": ("jump_relu",),
    "bandwidth": ("jump_relu",),
    "initial_threshold": ("jump_relu",),
    "group_fractions": ("matryoshka",),
    "group_reduction": ("matryoshka",),
}


class TrainSaeParams(Params):
    """Parameters of `train_sae`."""

    layer: int | None = Field(
        None,
        ge=0,
        description="Layer of the activations, where extract_activations stored several places; null takes the first "
        "that fits. The only one must be of it.",
    )
    hook: str | None = Field(None, description="Hook of the activations; as layer.")
    architecture: str = Field(
        "topk",
        description="SAE architecture.",
        json_schema_extra={"enum": list(trainable_architectures())},
    )
    expansion_factor: int | None = Field(
        16, ge=1, le=1024, description="Latents per dimension of the activations; null if dictionary_size is given."
    )
    dictionary_size: int | None = Field(
        None, ge=1, le=4_194_304, description="Number of latents; null if expansion_factor is given."
    )
    k: int = Field(
        32,
        ge=1,
        description="Latents active on a residue: the most of them with topk, their mean with batch_topk and "
        "matryoshka. The other architectures have no such number.",
    )
    preset: str = Field(
        "plmsae",
        description="Whose way of training fills in what is null here: ours, the paper of the architecture, "
        "dictionary_learning 0.1.0 or InterPLM (docs/architectures.md).",
        json_schema_extra={"enum": list(PRESETS)},
    )
    tokens: int = Field(4_000_000, ge=1, description="Length of the training in residues, rounded up to whole batches.")
    batch_size: int | None = Field(
        None, ge=1, le=1_048_576, description="Residues of a step; null takes the preset's, 2048 with ours."
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Adam's rate after the warm-up; null takes the preset's, 2e-4 sqrt(2^14 / dictionary size) with "
        "ours.",
    )
    threshold_learning_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Adam's rate for jump_relu's thresholds; null takes learning_rate, "
        "and with a target_l0 five times as much (but for the quadratic form of other presets).",
    )
    center: Literal["geometric_median", "mean", "zero"] | None = Field(
        None,
        description="Where the decoder's bias starts, from the first training residues; null takes the preset's, the "
        "geometric median with ours. l1_april always starts at zero, as its paper does.",
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        description="Steps of linear warm-up; null takes the preset's, with ours as many as "
        "hold 204,800 residues: 100 of 2048.",
    )
    decay_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the training, at its end, over which the rate falls linearly to zero; null takes the "
        "preset's, 0.2 with ours.",
    )
    adam_beta1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Adam's first decay rate; null takes the preset's: 0.9, or 0 for jump_relu and gated.",
    )
    adam_beta2: float | None = Field(
        None, ge=0, lt=1, description="Adam's second decay rate; null takes the preset's, 0.999 with ours."
    )
    adam_eps: float | None = Field(None, gt=0, lt=1, description="Adam's epsilon; null takes the preset's, 6.25e-10.")
    clip_norm: float | None = Field(
        None, ge=0, description="Bound of the gradient's norm; 0 for none, null takes the preset's, 1 with ours."
    )
    aux_alpha: float | None = Field(
        None,
        ge=0,
        description="Weight of AuxK, which revives dead latents; 0 turns it off, null takes the preset's, 1/32.",
    )
    aux_k: int | None = Field(
        None,
        ge=1,
        description="Dead latents that AuxK may use per residue; null takes the preset's, half of the activations' "
        "width with ours.",
    )
    anneal_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the training over which the selected latents per residue fall linearly from the "
        "activations' width to k (topk, batch_topk, matryoshka); 0 selects k throughout, null takes the preset's, 0.",
    )
    resample_steps: list[int] | None = Field(
        None,
        description="Steps after which dead latents are started anew at what is reconstructed worst (Bricken et al. "
        "2023); none if empty, null takes the preset's, none with ours.",
    )
    num_resample_rows: int | None = Field(
        None,
        ge=1,
        le=16_777_216,
        description="Training residues, at most, whose errors then say where; null takes the preset's, 819,200.",
    )
    penalty: float | None = Field(
        None,
        ge=0,
        description="Weight of the sparsity penalty of relu, l1_april, jump_relu and gated, for activations of unit "
        "mean squared norm; null takes the preset's, with ours 0.1, 5 / sqrt(width), 0.001 (1 if quadratic) and 0.1.",
    )
    penalty_warmup_fraction: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the training over which the sparsity penalty rises linearly; null takes the preset's, "
        "0.05 with ours.",
    )
    reconstruction: Literal["squared", "unsquared"] | None = Field(
        None,
        description="Whether relu's loss takes the square of the error's norm or, as InterPLM, the norm; null takes "
        "the preset's, squared with ours.",
    )
    target_l0: float | None = Field(
        None,
        gt=0,
        description="Mean number of active latents that jump_relu is to reach; null takes the preset's, with ours a "
        "plain L0 penalty and no target.",
    )
    l0_control: Literal["controller", "quadratic"] | None = Field(
        None,
        description="How jump_relu reaches target_l0: by the penalty (L0 / target - 1)^2, or by a controller of the "
        "plain penalty's weight; null takes quadratic.",
    )
    bandwidth: float | None = Field(
        None, gt=0, description="Width of jump_relu's kernel around a threshold; null takes 0.001."
    )
    initial_threshold: float | None = Field(
        None, ge=0, description="Where jump_relu's thresholds start; null takes 0.001."
    )
    group_fractions: Literal["power_law", "steering"] | list[float] | None = Field(
        None,
        description="Shares of the dictionary in matryoshka's nested groups, which sum to 1, or a published list by "
        "name: power_law (0.0273, 0.0427, 0.0759, 0.1708, 0.6833) or steering (0.002, 0.0156, 0.125, 0.8574). Null "
        "takes power_law.",
    )
    group_reduction: Literal["paper", "dictionary_learning", "reference"] | None = Field(
        None,
        description="How matryoshka adds up the errors of its prefixes; null takes the preset's, with ours paper, "
        "their sum.",
    )
    dead_after_tokens: int | None = Field(
        None,
        ge=1,
        description="A latent that has not fired for so many training residues is dead; null takes the preset's, with "
        "ours an eightieth of the training, at most 10 million.",
    )
    validate_every: int = Field(50, ge=1, description="Steps between rows of curves.csv.")
    num_valid_rows: int = Field(4096, ge=1, description="Held-out residues behind valid_fvu in curves.csv.")
    num_test_rows: int = Field(262_144, ge=1, description="Held-out residues, at most, behind the metrics at the end.")
    num_latent_max_rows: int = Field(
        524_288, ge=1, description="Training residues, at most, over which each latent's largest value is taken."
    )
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints, from which a killed run resumes.")
    kernel: Literal["auto", "reference"] = Field(
        "auto", description="`auto` is the fastest step, `reference` the plain dense one of the papers."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What the factors of a training step's matrix products are rounded to. Weights, optimiser, sums "
        "and losses are float32 in both. bfloat16 is twice as fast where the machine has it (docs/how-to/training.md).",
    )
    sequences: str | None = Field(
        None,
        min_length=1,
        description="A sequences.parquet of ingest (path, s3://, https://): its train proteins go through the PLM "
        "while the SAE trains, in place of the stored rows. The store, perhaps of a sample, gives all the rest.",
    )
    sequences_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="Hex sha256 that it must have.")
    num_workers: int = Field(
        0, ge=0, le=64, description="Threads that prepare batches ahead, from a second pool; the result is the same."
    )
    cache_mib: int = Field(
        4096, ge=1, description="Disk, in MiB, for blocks of activations that lie in a bucket; at most so much is used."
    )
    threads: int = Field(2, ge=1, le=256, description="CPU threads; the same number gives the same bytes.")
    num_nodes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Nodes of a cluster that share each batch; several are a TrainJob (docs/how-to/multi-node.md).",
    )
    num_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of a machine that may train, on GPUs with one each; they share threads and cache_mib. "
        "parallel says what they do (docs/how-to/data-parallel.md).",
    )
    parallel: Literal["auto", "data", "independent"] = Field(
        "auto",
        description="What several processes do: data divides every batch among them, independent deals the SAEs of a "
        "sweep out to them. auto divides one SAE's batches on GPUs from 16,384 residues on, and deals out several.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto takes a GPU if there is one."
    )
    seed: int = Field(
        0, ge=0, lt=2**53, description="Seed of the initial weights, and of the order of the rows unless order_seed is."
    )
    order_seed: int | None = Field(
        None, ge=0, lt=2**53, description="Seed of the order of the rows alone; null takes seed."
    )
    wandb_project: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9._-]{1,128}$",
        description="Project of Weights & Biases that gets the curves while the SAE trains; the API key is the "
        "environment variable WANDB_API_KEY. MLflow has them in any case, when the stage is through.",
    )

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in trainable_architectures():
            raise ValueError(f"unknown architecture; {did_you_mean(value, trainable_architectures())}")
        return value

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"unknown preset; {did_you_mean(value, PRESETS)}")
        return value

    @field_validator("resample_steps")
    @classmethod
    def _steps(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and (any(step < 1 for step in value) or sorted(set(value)) != value):
            raise ValueError(f"steps must ascend from at least 1, not {value}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainSaeParams:
        if self.precision != "float32" and self.kernel == "reference":
            raise ValueError("kernel reference is the papers' step in float32; set kernel to auto, or precision")
        if (self.expansion_factor is None) == (self.dictionary_size is None):
            raise ValueError("give one of expansion_factor and dictionary_size and set the other to null")
        if self.num_nodes > 1 and self.parallel == "independent":
            raise ValueError("on several nodes every batch is divided; set parallel to auto or data, or num_nodes to 1")
        for name, architectures in OPTIONS.items():
            if getattr(self, name) is not None and self.architecture not in architectures:
                raise ValueError(f"{name} is for {', '.join(architectures)}; with {self.architecture} set it to null")
        selects = self.architecture in SELECTS_K
        try:
            chosen = recipe(self.preset, self.architecture)
        except UserError as error:
            raise ValueError(f"{error.problem}; {error.fix}") from error
        if self.l0_control is not None and self.target_l0 is None and chosen.options.get("target_l0") is None:
            raise ValueError("l0_control says how target_l0 is reached; give target_l0 as well")
        if self.anneal_fraction and not selects:
            raise ValueError(f"anneal_fraction is for {', '.join(SELECTS_K)}; with {self.architecture} set it to 0")
        if selects and self.dictionary_size is not None and self.k > self.dictionary_size:
            raise ValueError(f"k = {self.k} is larger than the dictionary of {self.dictionary_size} latents")
        return self
