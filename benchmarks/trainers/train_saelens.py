"""A round of SAELens 6.54.12: its `SAETrainer` on its `ActivationsStore`, by the Python of an environment with both.

The store reads cached activations, an Arrow data set of sequences, through the mixing buffer. The normalisation
`expected_average_only_in` is measured on 20 batches before the clock starts. It begins as the others do, with unit
atoms and a decoder bias at the mean; with its defaults, atoms of norm 0.1 and no bias, so short a training would hardly
get anywhere. Weights & Biases is disabled: it is told what to log, and does nothing. With `prepare` as second argument,
the script writes the data set and stops.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import torch
import wandb
from clock import Clock, Job, job_of_command_line
from datasets import Array2D, Dataset, Features, Sequence, Value
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer

NORM_BATCHES = 20
CONTEXT = 128  # rows of a sequence of the data set
HOOK = "residual"
SAES = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}


def prepare(job: Job) -> None:
    rows = torch.load(job.folder / "train.pt", weights_only=True)
    sequences = rows[: len(rows) // CONTEXT * CONTEXT].view(-1, CONTEXT, job.d)
    features = Features(
        {HOOK: Array2D((CONTEXT, job.d), "float32"), "token_ids": Sequence(Value("int32"), length=CONTEXT)}
    )
    ids = torch.zeros(len(sequences), CONTEXT, dtype=torch.int32)
    data = Dataset.from_dict({HOOK: sequences.numpy(), "token_ids": ids.numpy()}, features=features)
    data.save_to_disk(job.folder / "saelens" / "activations")


def mean(job: Job) -> torch.Tensor:
    rows: torch.Tensor = torch.load(job.folder / "train.pt", weights_only=True, mmap=True)
    return rows[: job.warmup * job.batch].mean(0)


def activations(job: Job) -> ActivationsStore:
    return ActivationsStore(
        model=SimpleNamespace(),  # never called: the activations are there
        dataset=None,
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=job.d,
        n_batches_in_buffer=4 * job.batch // CONTEXT,
        total_training_tokens=job.all_steps * job.batch,
        store_batch_size_prompts=job.batch // CONTEXT,
        train_batch_size_tokens=job.batch,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(job.folder / "saelens" / "activations"),
    )


def main() -> None:
    job = job_of_command_line()
    if sys.argv[2:] == ["prepare"]:
        prepare(job)
        return
    torch.manual_seed(0)
    wandb.init(mode="disabled")
    sae_class, config_class = SAES[job.architecture]
    more = {"matryoshka_widths": torch.tensor(job.group_sizes).cumsum(0).tolist()}
    config = config_class(
        d_in=job.d,
        d_sae=job.n,
        k=job.k,
        normalize_activations="expected_average_only_in",
        decoder_init_norm=1.0,
        **(more if job.architecture == "matryoshka" else {}),
    )
    sae = sae_class(config)
    with torch.no_grad():
        sae.b_dec.copy_(math.sqrt(job.d) / job.scale * mean(job))
    clock = Clock(job, NORM_BATCHES + job.warmup)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=job.all_steps * job.batch,
            train_batch_size_samples=job.batch,
            lr=job.learning_rate,
            lr_end=job.learning_rate,
            lr_warm_up_steps=job.warmup,
            n_checkpoints=1,
            checkpoint_path=str(job.folder / "saelens" / "checkpoints"),
            logger=LoggingConfig(log_to_wandb=True, wandb_log_frequency=job.middle),
            n_batches_for_norm_estimate=NORM_BATCHES,
        ),
        sae,
        data_provider=clock.feed(iter(activations(job))),
    )
    trainer.fit()
    clock.report(lambda x: sae.decode(sae.encode(x)))


if __name__ == "__main__":
    main()
