"""A round of dictionary_learning 0.1.0: its `trainSAE`, run by the Python of an environment that has it.

It takes any iterator of batches; here the shortest one, over a fp32 tensor in a mapped file. It divides by a norm
factor that it measures on 102 batches of its own before the clock starts.
"""

from __future__ import annotations

import torch
from clock import Clock, job_of_command_line, shuffled
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary

NORM_BATCHES = 102
TRAINERS = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer, "matryoshka": MatryoshkaBatchTopKTrainer}


def main() -> None:
    job = job_of_command_line()
    rows = torch.load(job.folder / "train.pt", weights_only=True, mmap=True)
    clock = Clock(job, NORM_BATCHES + job.warmup)
    trainer = {
        "trainer": TRAINERS[job.architecture],
        "steps": job.all_steps,
        "activation_dim": job.d,
        "dict_size": job.n,
        "k": job.k,
        "layer": 0,
        "lm_name": "none",
        "lr": job.learning_rate,
        "warmup_steps": job.warmup,
        "seed": 0,
        "device": "cpu",
    }
    if job.architecture == "matryoshka":
        trainer["group_fractions"] = [size / job.n for size in job.group_sizes]
    folder = job.folder / "dictionary_learning"
    trainSAE(
        clock.feed(shuffled(rows, job.batch)),
        [trainer],
        job.all_steps,
        save_steps=[job.middle],
        save_dir=str(folder),
        verbose=True,
        log_steps=job.middle,
        normalize_activations=True,
        device="cpu",
    )
    sae, _ = load_dictionary(str(folder / "trainer_0"), "cpu")
    # With the selection of the training: a threshold is learnt from step 1000 on.
    clock.report(lambda x: sae.decode(sae.encode(x, use_threshold=False)))


if __name__ == "__main__":
    main()
