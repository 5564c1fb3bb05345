"""Which way several processes of one machine train SAEs fastest.

Dividing a step among N processes saves (1 - 1/N) of its arithmetic and costs the sum of the gradients. An SAE has
P = 2 n d weights. The products that are saved are c 2 B n d operations at R per second (c = 6 for a dense step, from 1
to 2 for a sparse one); a ring moves 2 (N - 1)/N 4 P bytes at W per second, since gradients are summed in fp32:

    saved / cost = (c 2 B n d / R) / (16 n d / W) = c B W / (8 R)

The dictionary's size, the width and N cancel: what decides is the batch. On GPUs with R = 400 TFLOP/s in bf16 and with
NVLink at W = 400 GB/s a sparse step breaks even at B = 5,000 or so, and Adam, which is not divided, is a good part of a
step below that. An SAE of its own in each process exchanges nothing, so with as many SAEs as processes that is always
faster. The processes of one CPU have the same cores as one process with more threads: there nothing is saved.
"""

from __future__ import annotations

from typing import Literal

Parallel = Literal["auto", "data", "independent"]
Way = Literal["one", "together", "apart"]
# Three times what breaks even: below it the GPUs are better given to other SAEs.
SMALLEST_BATCH = 16_384


def way_of(parallel: Parallel, num_processes: int, num_saes: int, batch_size: int, device: str) -> Way:
    """How to train: in `one` process, `together` in all of them, or the SAEs `apart`, dealt out to them.

    Args:
        parallel: `data` and `independent` decide it; `auto` goes by the rule above.
        num_processes: How many there may be.
        num_saes: How many SAEs share the batches.
        batch_size: Rows of a whole batch.
        device: `cpu` or `cuda`.
    """
    if num_processes == 1:
        return "one"
    if parallel == "data":
        return "together"
    dealt: Way = "apart" if num_saes > 1 else "one"
    if parallel == "independent" or num_saes >= num_processes:
        return dealt
    return "together" if device == "cuda" and batch_size >= SMALLEST_BATCH else dealt
