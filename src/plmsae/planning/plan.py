"""The plan of a request: stages, totals, what drives the cost, what will not fit."""

from __future__ import annotations

from typing import Any

from plmsae.planning import formulas as f
from plmsae.planning.request import Request
from plmsae.planning.stages import Estimate, evaluation, extraction
from plmsae.planning.stages import training as training_stage
from plmsae.planning.units import amount, duration, number

FAST_DISK = 3e9  # bytes/s, about one NVMe drive: needed rates above it are worth a word


def make_plan(request: Request) -> dict[str, Any]:
    """Everything that `plmsae plan --json` prints.

    Bytes are bytes, rates per second, FLOP counts a multiply-add as two.
    """
    stages = {
        "extract_activations": extraction(request),
        "train_sae": training_stage(request),
        "evaluate": evaluation(request),
    }
    machine = request.machine
    hours = {key: sum(stage["device_hours"][key] for stage in stages.values()) for key in ("floor", "assumed")}
    saes = stages["train_sae"]["saes"] * stages["train_sae"]["file_bytes"]
    on_disk = saes + (0.0 if request.storing.remote else stages["extract_activations"]["bytes"])
    total: Estimate = {
        "seconds": {key: sum(stage["seconds"][key] for stage in stages.values()) for key in ("floor", "assumed")},
        "device_hours": hours,
        "disk_bytes": on_disk,
        "bucket_bytes": stages["extract_activations"]["bytes"] if request.storing.remote else 0.0,
    }
    if machine.price is not None:
        total["cost"] = {key: value * machine.price for key, value in hours.items()}
    plm = request.plm
    return {
        "title": request.title,
        "plm": {
            "name": plm.name,
            "family": plm.family,
            "layers": plm.layers,
            "d_model": plm.d_model,
            "parameters": f.plm_parameters(plm),
        },
        "corpus": {
            "description": request.corpus.description,
            "splits": {
                name: {"sequences": lengths.sequences, "residues": lengths.residues}
                for name, lengths in request.corpus.splits.items()
            },
            "mean_length": request.corpus.splits["train"].mean,
            "longest": max(lengths.longest for lengths in request.corpus.splits.values()),
            "left_out": request.corpus.left_out,
        },
        "machine": {
            "device": machine.device.name,
            "count": machine.count,
            "peak_flops": dict(machine.device.rates),
            "bandwidth": machine.device.bandwidth,
            "memory": machine.device.memory,
            "source": machine.device.source,
            "utilisation": machine.utilisation,
            "free_disk": machine.free_disk,
        },
        "stages": stages,
        "total": total,
        "drivers": drivers(request, stages),
        "warnings": warnings(request, stages, on_disk),
        "notes": list(request.notes),
        "assumptions": assumptions(request),
    }


def assumptions(request: Request) -> list[str]:
    """What the numbers rest on, in words."""
    machine = request.machine
    device, storing, training = machine.device, request.storing.precision, request.training.precision
    return [
        f"floor: matrix products at {number(device.rates[storing], 'FLOP/s')} in the extraction ({storing}) and "
        f"{number(device.rates[training], 'FLOP/s')} in training and evaluation ({training}), memory at "
        f"{amount(device.bandwidth)}/s, nothing else and nothing overlapped ({device.name}: {device.source})",
        f"assumed: {machine.utilisation:.0%} of these rates (an assumption, set it with --utilisation; narrow models "
        "reach less)",
        "extraction is dealt to all devices; an SAE trains on one; evaluation counts forward passes only"
        + ("" if device.name == "cpu" else ", and as if they ran there: `evaluate` itself computes on the processor"),
        "not counted: start-up, loading weights, ingest and its clustering, reading and writing beyond the stated "
        "rates, AuxK, statistics of the evaluations",
    ]


def drivers(request: Request, stages: dict[str, Estimate]) -> list[str]:
    """The largest parts of the cost and what would change them, most important first."""
    extract, train = stages["extract_activations"], stages["train_sae"]
    hours = {name: stage["device_hours"]["floor"] for name, stage in stages.items()}
    total = sum(hours.values())
    what = {
        "extract_activations": f"the forward pass of {request.plm.name}",
        "train_sae": f"the training of {train['saes']:,} SAE{'s' if train['saes'] > 1 else ''}",
        "evaluate": "the forward passes of the evaluations",
    }
    said = [
        f"{hours[name] / total:.0%} of the time is {what[name]}"
        for name in sorted(hours, key=lambda name: -hours[name])
        if hours[name] / total >= 0.05
    ]
    if extract["flops"]:
        share = extract["flops_attention_quadratic"] / extract["flops"]
        said.append(f"{share:.0%} of the extraction is attention's quadratic term")
    saved = extract["flops_saved_by_early_exit"] / (extract["flops"] + extract["flops_saved_by_early_exit"])
    if saved >= 0.02:
        said.append(f"stopping after the last wanted layer saves {saved:.0%} of a full forward pass")
    rates = request.machine.device.rates
    if request.storing.precision == "float32" and extract["flops"] and rates["bfloat16"] > 1.5 * rates["float32"]:
        said.append(
            f"extract_activations.precision: bfloat16 would take {rates['float32'] / rates['bfloat16']:.0%} of the "
            "extraction's floor"
        )
    if train["fastest"] == "sparse":
        seconds = train["floor_seconds_per_sae"]
        said.append(f"sparse products could train in {seconds['sparse'] / seconds['dense']:.0%} of the dense time")
    elif "sparse" in train["floor_seconds_per_sae"]:
        said.append("dense products are faster here than fetching the rows of the active latents")
    adam = train["traffic_adam"] / train["saes"] / request.machine.device.bandwidth
    share = adam / train["floor_seconds_per_sae"][train["fastest"]]
    if share >= 0.1:
        said.append(f"{share:.0%} of the training is Adam's memory traffic, which a larger batch divides")
    said.append(_caching(request, extract, train))
    together = request.training.saes
    if together > 1:
        said.append(
            f"one `train_sae` per SAE reads {amount(train['bytes_read'])} in all; the stage `sweep` trains the "
            f"{together} of a store from one read, {amount(train['bytes_read'] / together)}"
        )
    if extract["write_rate"] and extract["write_rate"]["assumed"] > FAST_DISK:
        said.append(
            f"storage slower than {amount(extract['write_rate']['assumed'])}/s, and not the device, sets the time of "
            "the extraction"
        )
    if train["read_rate"]["assumed"] > FAST_DISK:
        said.append(
            f"storage slower than {amount(train['read_rate']['assumed'])}/s, and not the device, sets the time of the "
            "training"
        )
    if train["epochs"] < 0.9:
        said.append(f"every SAE sees {train['epochs']:.0%} of the stored training residues: fewer sequences would do")
    if extract["dtype"] == "float32":
        said.append(
            f"bfloat16 would store {amount(extract['bytes_by_dtype']['bfloat16'])} instead of "
            f"{amount(extract['bytes'])}"
        )
    return said


def _caching(request: Request, extract: Estimate, train: Estimate) -> str:
    first = f.stores_pay_from(request.corpus.splits["train"].residues, train["tokens_per_sae"])
    if not extract["flops"]:
        return "the embedding needs no forward pass: a store saves nothing but tokenising"
    per_sae = extract["device_hours"]["assumed"] * train["tokens_per_sae"] / extract["rows"]
    saes = "one SAE" if first == 1 else f"{first} SAEs"
    return (
        f"storing activations pays from {saes} per layer trained one after the other: without a store each would spend "
        f"{duration(per_sae * 3600)} of device time on the PLM"
    )


def warnings(request: Request, stages: dict[str, Estimate], on_disk: float) -> list[str]:
    """What will not fit or not work."""
    machine, plm = request.machine, request.plm
    extract, train = stages["extract_activations"], stages["train_sae"]
    said = []
    if on_disk > machine.free_disk:
        said.append(
            f"the working folder has {amount(machine.free_disk)} free, the run writes {amount(on_disk)}: store fewer "
            "residues or layers, another dtype, or into a bucket (extract_activations.store)"
        )
    needs = {
        "extract_activations": extract["memory"]["weights"] + extract["memory"]["batch"],
        "train_sae": train["memory"]["weights_gradients_adam"] + train["memory"]["batch"],
    }
    for name, bytes_ in needs.items():
        if bytes_ > machine.device.memory:
            said.append(
                f"{name} needs {amount(bytes_)} of memory, a device ({machine.device.name}) has "
                f"{amount(machine.device.memory)}"
            )
    if extract["memory"]["pool"] > machine.memory:
        said.append(
            f"shuffling {request.storing.part_rows:,} rows for {extract['stores']} stores needs "
            f"{amount(extract['memory']['pool'])} of memory, this machine has {amount(machine.memory)}: lower "
            "extract_activations.shuffle_pool_rows"
        )
    longest = max(lengths.longest for lengths in request.corpus.splits.values())
    if longest > plm.max_residues:
        said.append(
            f"the longest row has {longest:,} residues, '{plm.name}' takes {plm.max_residues:,}: set "
            f"ingest.max_residues to {plm.max_residues:,}"
        )
    if train["epochs"] > 10:
        said.append(f"every SAE sees the training residues {train['epochs']:.0f} times: more sequences would help")
    if request.training.latents < plm.d_model:
        said.append(
            f"the dictionary of {request.training.latents:,} latents is narrower than the {plm.d_model:,}-wide rows"
        )
    return said
