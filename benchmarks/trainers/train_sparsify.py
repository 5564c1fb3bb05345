"""A round of sparsify 1.3.3: its `Trainer`, run by the Python of an environment that has it.

It takes no stored activations, only a language model and tokens. Its model here is a table of the rows, divided by the
scale, and its tokens are the numbers of rows: it reads what the others read, and pays for no model. Adam, as the others
have; the rate falls to zero from the warm-up on, which cannot be turned off.
"""

from __future__ import annotations

import torch
from clock import Clock, job_of_command_line
from datasets import Dataset
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

CONTEXT = 128  # rows of a sequence


class Rows(PreTrainedModel):
    """Looks rows up by their numbers."""

    config_class = PretrainedConfig

    def __init__(self, rows: Tensor, clock: Clock) -> None:
        super().__init__(PretrainedConfig())
        self.table = torch.nn.Embedding.from_pretrained(rows)
        self.clock, self.calls = clock, 0

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    def forward(self, input_ids: Tensor) -> Tensor:
        self.clock.tick(self.calls - 1)  # the constructor of the trainer calls it once
        self.calls += 1
        return self.table(input_ids)


def main() -> None:
    job = job_of_command_line()
    assert job.architecture == "topk"
    rows = torch.load(job.folder / "train.pt", weights_only=True) / job.scale
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: job.all_steps * job.batch]
    assert len(order) == job.all_steps * job.batch
    tokens = Dataset.from_dict({"input_ids": order.view(-1, CONTEXT).numpy()}).with_format("torch")
    clock = Clock(job, job.warmup)
    trainer = Trainer(
        TrainConfig(
            SparseCoderConfig(num_latents=job.n, k=job.k),
            batch_size=job.batch // CONTEXT,
            optimizer="adam",
            lr=job.learning_rate,
            lr_warmup_steps=job.warmup,
            hookpoints=["table"],
            save_every=job.middle,
            save_dir=str(job.folder / "sparsify"),
            log_to_wandb=False,
        ),
        tokens,
        Rows(rows, clock),
    )
    trainer.fit()
    coder: SparseCoder = trainer.saes["table"]
    clock.report(lambda x: coder(x / job.scale).sae_out * job.scale, waits=False)


if __name__ == "__main__":
    main()
