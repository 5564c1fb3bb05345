"""What each stage takes: the formulas applied to a request. Times are (floor, assumed), see `times`."""

from __future__ import annotations

from math import ceil
from typing import Any

from plmsae.planning import formulas as f
from plmsae.planning.accelerators import PRECISIONS
from plmsae.planning.lengths import Lengths
from plmsae.planning.request import Machine, Request

Estimate = dict[str, Any]


def times(
    machine: Machine, precision: str, flops: float, traffic: float = 0.0, *, jobs: float = 1.0, split: bool = True
) -> Estimate:
    """Time of `jobs` equal jobs.

    Args:
        machine: Devices and the assumed utilisation.
        precision: Type of the products.
        flops: Products of one job.
        traffic: Bytes that it moves through the device's memory.
        jobs: Number of jobs.
        split: Whether one job can be dealt to all devices; otherwise each runs on one.

    Returns:
        `seconds` and `device_hours`, both as `floor` (100 % of the peak rates) and `assumed` (the utilisation).
    """
    one = f.seconds(flops, traffic, machine.device.rates[precision], machine.device.bandwidth)
    rounds = jobs / machine.count if split else ceil(jobs / machine.count)
    return {
        "seconds": {"floor": one * rounds, "assumed": one * rounds / machine.utilisation},
        "device_hours": {"floor": one * jobs / 3600, "assumed": one * jobs / machine.utilisation / 3600},
    }


def extraction(request: Request) -> Estimate:
    """`extract_activations`: one pass over train and valid, all stores at once, up to the last wanted hook."""
    plm, storing, corpus = request.plm, request.storing, request.corpus
    depths = [f.depth(plm, layer, hook) for layer, hook in storing.captures]
    tokens = sum(lengths.tokens(plm.specials) for lengths in corpus.stored)
    squared = sum(lengths.squared_tokens(plm.specials) for lengths in corpus.stored)
    rows = sum(lengths.residues for lengths in corpus.stored)
    flops, quadratic = f.forward_flops(plm, depths, tokens, squared)
    whole, _ = f.forward_flops(plm, [(plm.layers, False)], tokens, squared)
    sizes = [
        f.store_size(
            lengths.residues, plm.d_model, storing.dtype, block_rows=storing.block_rows, part_rows=storing.part_rows
        )
        for lengths in corpus.stored
    ]
    blocks, half = max(depths)
    value_bytes = PRECISIONS[storing.precision]
    stores = len(storing.captures)
    store_bytes = sum(size[0] for size in sizes)
    time = times(request.machine, storing.precision, flops)
    return {
        "sequences": sum(lengths.sequences for lengths in corpus.stored),
        "tokens": tokens,
        "rows": rows,
        "stores": stores,
        "captures": [{"layer": layer, "hook": hook} for layer, hook in storing.captures],
        "blocks_computed": blocks + 0.5 * half,
        "flops": flops,
        "flops_attention_quadratic": quadratic,
        "flops_saved_by_early_exit": whole - flops,
        "flops_per_residue": flops / rows,
        "precision": storing.precision,
        "dtype": storing.dtype,
        "row_bytes": f.row_bytes(plm.d_model, storing.dtype),
        "bytes_per_store": store_bytes,
        "bytes": store_bytes * stores,
        "bytes_by_dtype": {dtype: rows * f.row_bytes(plm.d_model, dtype) * stores for dtype in sorted(f.VALUE_BYTES)},
        "parts": sum(size[1] for size in sizes) * stores,
        "blocks": sum(size[2] for size in sizes) * stores,
        "chunks": sum(size[3] for size in sizes) * stores,
        "memory": {
            "plm_parameters": f.plm_parameters(plm),
            "weights": f.plm_parameters(plm) * value_bytes,
            "batch": f.forward_memory(plm, storing.batch_tokens, value_bytes),
            "pool": min(2 * storing.part_rows, rows) * f.row_bytes(plm.d_model, storing.dtype) * stores,
        },
        "write_rate": {key: store_bytes * stores / time["seconds"][key] for key in ("floor", "assumed")}
        if flops
        else None,
        **time,
    }


def training(request: Request) -> Estimate:
    """`train_sae`: every SAE on its own, reading its store."""
    spec, d, machine = request.training, request.plm.d_model, request.machine
    n, k, value_bytes = spec.latents, spec.k, PRECISIONS[spec.precision]
    steps = ceil(spec.tokens / spec.batch)
    tokens = steps * spec.batch
    parameters = f.sae_parameters(spec.architecture, d, n)
    adam = f.adam_traffic(parameters, steps)
    selection = f.selection_traffic(n, tokens, value_bytes)
    dense = f.dense_flops(spec.architecture, d, n, tokens)
    # Products at the peak rate, and traffic, of each way to compute a step.
    ways = {"dense": (dense, adam + selection)}
    sparse = None
    if k is not None and spec.architecture in f.SPARSE:
        sparse = f.sparse_flops(d, n, k, tokens)
        # The gathered products run at the memory's speed: only the encoder's is left for the peak rate.
        ways["sparse"] = (2 * d * n * tokens, adam + selection + f.gather_traffic(d, k, tokens, value_bytes))
    seconds = {
        way: f.seconds(flops, traffic, machine.device.rates[spec.precision], machine.device.bandwidth)
        for way, (flops, traffic) in ways.items()
    }
    fastest = min(seconds, key=lambda way: seconds[way])
    saes = spec.saes * len(request.storing.captures)
    time = times(machine, spec.precision, *ways[fastest], jobs=saes, split=False)
    row_bytes = f.row_bytes(d, request.storing.dtype)
    train_rows = request.corpus.splits["train"].residues
    return {
        "architecture": spec.architecture,
        "precision": spec.precision,
        "d_model": d,
        "latents": n,
        "k": k,
        "parameters": parameters,
        "file_bytes": f.sae_file_bytes(spec.architecture, d, n),
        "saes": saes,
        "tokens_per_sae": tokens,
        "steps_per_sae": steps,
        "epochs": tokens / train_rows,
        "tokens": tokens * saes,
        "flops_per_token": dense / tokens,
        "flops_dense": dense * saes,
        "flops_sparse": sparse * saes if sparse is not None else None,
        "fastest": fastest,
        "floor_seconds_per_sae": seconds,
        "traffic": ways[fastest][1] * saes,
        "traffic_adam": adam * saes,
        "bytes_read": tokens * row_bytes * saes,
        # Devices read on their own: what one of them needs, times those that are busy.
        "read_rate": {
            key: min(saes, machine.count) * tokens * row_bytes * factor / seconds[fastest]
            for key, factor in (("floor", 1.0), ("assumed", machine.utilisation))
        },
        "memory": {
            "weights_gradients_adam": f.adam_memory(parameters),
            "batch": f.batch_memory(n, d, spec.batch, value_bytes),
        },
        **time,
    }


def evaluation(request: Request) -> Estimate:
    """`evaluate` for every SAE: forward passes of fidelity and concepts, without their statistics.

    Fidelity: two protocols, or one for a causal model, each a common part up to the hook and five endings with the head
    (clean, SAE, zero, mean, random error); and the same for every copy in which one residue is masked.
    Concepts: valid and test up to the hook, and the encoder.
    """
    plm, corpus = request.plm, request.corpus
    test, valid = corpus.splits["test"], corpus.splits["valid"]
    share = 1.0
    if request.fidelity_proteins is not None and test.sequences:
        share = min(1.0, request.fidelity_proteins / test.sequences)
    tested = test.scaled(share)
    causal = plm.family == "progen"
    protocols, singles = (1, 0) if causal else (2, request.fidelity_single)
    fed = Lengths({length: count * (protocols + min(singles, length)) for length, count in tested.counts.items()})
    tokens, squared = fed.tokens(plm.specials), fed.squared_tokens(plm.specials)
    whole, _ = f.forward_flops(plm, [(plm.layers, False)], tokens, squared)
    head = f.language_head_flops(plm, tokens)
    both_tokens = sum(lengths.tokens(plm.specials) for lengths in (valid, test))
    both_squared = sum(lengths.squared_tokens(plm.specials) for lengths in (valid, test))
    flops = 0.0
    for layer, hook in request.storing.captures:
        depths = [f.depth(plm, layer, hook)]
        before, _ = f.forward_flops(plm, depths, tokens, squared)
        flops += before + 5 * (whole - before + head)
        flops += f.forward_flops(plm, depths, both_tokens, both_squared)[0]
        flops += 2 * plm.d_model * request.training.latents * (both_tokens + tokens)
    flops *= request.training.saes
    return {
        "saes": request.training.saes * len(request.storing.captures),
        "sequences": {"fidelity": tested.sequences, "concepts": valid.sequences + test.sequences},
        "tokens": {"fidelity": tokens, "concepts": both_tokens},
        "flops": flops,
        **times(request.machine, request.training.precision, flops),
    }
