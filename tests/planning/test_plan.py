"""A whole plan, worked out by hand for a tiny request, and what it says about itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plmsae.planning.accelerators import Accelerator
from plmsae.planning.lengths import Lengths, log_normal
from plmsae.planning.models import Transformer
from plmsae.planning.plan import make_plan
from plmsae.planning.report import render
from plmsae.planning.request import Corpus, Machine, Request, Storing, Training

PLM = Transformer("toy", "esm", 4, 10, 2, 5, 40, 33, 2, 100)
DEVICE = Accelerator("toy-device", {"float32": 1e6, "bfloat16": 1e6}, 1e5, 1e9, "made up")
# 8 + 2 tokens each: 100 sequences are 1,000 tokens and 10,000 squared ones.
CORPUS = Corpus("made up", {"train": Lengths({8: 80}), "valid": Lengths({8: 20}), "test": Lengths({8: 10})})
REQUEST = Request(
    title="toy",
    plm=PLM,
    corpus=CORPUS,
    storing=Storing(((2, "residual"),), "bfloat16", 64, 400, 128, "bfloat16", remote=False),
    training=Training("topk", 80, 5, 3200, 100, 1, "bfloat16"),
    machine=Machine(DEVICE, 1, 0.5, None, 1e9, 1e9),
)


def stages(request: Request) -> Any:
    return make_plan(request)["stages"]


def test_extraction_by_hand() -> None:
    found = stages(REQUEST)["extract_activations"]
    assert (found["sequences"], found["rows"], found["tokens"]) == (100, 800, 1000)
    # A block: attention 8 x 10 x 10, feed-forward 4 x 10 x 40 per token, and 4 x 10 per squared token; two blocks.
    assert found["flops"] == 2 * ((800 + 1600) * 1000 + 40 * 10_000) == 5_600_000
    assert found["flops_attention_quadratic"] == 800_000
    assert found["flops_saved_by_early_exit"] == 5_600_000
    assert found["blocks_computed"] == 2
    # 640 train rows in two parts of 320 (5 blocks), 160 valid rows in one part (3 blocks): 20 bytes a row, 24 a block,
    # 8 a file.
    assert (found["parts"], found["blocks"], found["chunks"]) == (3, 13, 3)
    assert found["bytes"] == 800 * 20 + 13 * 24 + 3 * 8
    assert found["bytes_by_dtype"] == {"bfloat16": 16_000, "float16": 16_000, "float32": 32_000, "int8": 11_200}
    assert found["seconds"] == {"floor": pytest.approx(5.6), "assumed": pytest.approx(11.2)}
    assert found["device_hours"]["floor"] == pytest.approx(5.6 / 3600)
    assert found["write_rate"]["floor"] == pytest.approx(found["bytes"] / 5.6)
    # Weights: 33 x 10 + 4 blocks of (4 x 100 + 40) + (800 + 50) + 40, and 20 + 9 + 110 + 20 + 33 around them.
    assert found["memory"] == {"plm_parameters": 5842, "weights": 11_684, "batch": 128 * 60 * 2, "pool": 800 * 20}


def test_training_by_hand() -> None:
    found = stages(REQUEST)["train_sae"]
    assert (found["steps_per_sae"], found["tokens_per_sae"], found["epochs"]) == (32, 3200, 5)
    parameters = 2 * 80 * 10 + 10 + 80
    assert (found["parameters"], found["file_bytes"]) == (parameters, 4 * (parameters + 80))
    assert found["flops_dense"] == 12 * 10 * 80 * 3200
    assert found["flops_sparse"] == (2 * 10 * 80 + 8 * 5 * 10) * 3200
    adam, select, gather = 28 * parameters * 32, 2 * 80 * 3200 * 2, 4 * 5 * 10 * 3200 * 2
    assert found["traffic_adam"] == adam
    dense = found["flops_dense"] / 1e6 + (adam + select) / 1e5
    sparse = 2 * 10 * 80 * 3200 / 1e6 + (adam + select + gather) / 1e5
    assert found["floor_seconds_per_sae"] == {"dense": pytest.approx(dense), "sparse": pytest.approx(sparse)}
    assert found["fastest"] == "sparse"
    assert found["seconds"]["assumed"] == pytest.approx(2 * sparse)
    assert found["bytes_read"] == 3200 * 20
    assert found["read_rate"]["floor"] == pytest.approx(3200 * 20 / sparse)
    assert found["memory"] == {"weights_gradients_adam": 16 * parameters, "batch": 100 * (240 + 40) * 2}


def test_precision_decides_rates_and_memory() -> None:
    device = replace(DEVICE, rates={"float32": 1e5, "bfloat16": 1e6})
    request = replace(
        REQUEST,
        machine=replace(REQUEST.machine, device=device),
        storing=replace(REQUEST.storing, precision="float32"),
        training=replace(REQUEST.training, precision="float32"),
    )
    exact, fast = make_plan(request), make_plan(REQUEST)
    assert exact["stages"]["extract_activations"]["seconds"]["floor"] == pytest.approx(56)
    for name, part in (("extract_activations", "weights"), ("extract_activations", "batch"), ("train_sae", "batch")):
        assert exact["stages"][name]["memory"][part] == 2 * fast["stages"][name]["memory"][part]
    adam, select, gather = 28 * 1690 * 32, 2 * 80 * 3200 * 4, 4 * 5 * 10 * 3200 * 4
    sparse = 2 * 10 * 80 * 3200 / 1e5 + (adam + select + gather) / 1e5
    assert exact["stages"]["train_sae"]["seconds"]["floor"] == pytest.approx(sparse)
    assert exact["stages"]["evaluate"]["seconds"]["floor"] == pytest.approx(
        10 * fast["stages"]["evaluate"]["seconds"]["floor"]
    )
    assert "extract_activations.precision: bfloat16 would take 10% of the extraction's floor" in exact["drivers"]
    assert not any("precision" in driver for driver in fast["drivers"])


def test_evaluation_by_hand() -> None:
    found = stages(replace(REQUEST, fidelity_proteins=5))["evaluate"]
    # Fidelity: 5 sequences, 50 tokens, 500 squared, two protocols; concepts: 30 sequences, 300 tokens, 3,000 squared.
    two_blocks = 2 * (2400 * 50 + 40 * 500)
    head = 2 * 10 * 43 * 50
    fidelity = 2 * (two_blocks + 5 * (two_blocks + head))
    concepts = 2 * (2400 * 300 + 40 * 3000)
    encoders = 2 * 10 * 80 * (300 + 2 * 50)
    assert found["flops"] == fidelity + concepts + encoders
    assert found["sequences"] == {"fidelity": 5, "concepts": 30}
    assert found["tokens"] == {"fidelity": 100, "concepts": 300}


def test_copies_with_one_residue_masked_are_counted_and_a_causal_model_has_none() -> None:
    one = (
        stages(replace(REQUEST, fidelity_proteins=5))["evaluate"]["flops"]
        - stages(replace(REQUEST, fidelity_proteins=0))["evaluate"]["flops"]
    )
    for single, copies in ((3, 3), (20, 8)):  # of sequences of 8 residues
        found = stages(replace(REQUEST, fidelity_proteins=5, fidelity_single=single))["evaluate"]
        assert found["tokens"]["fidelity"] == (2 + copies) * 50
        without = stages(replace(REQUEST, fidelity_proteins=0))["evaluate"]["flops"]
        assert found["flops"] - without == pytest.approx(one * (2 + copies) / 2)
    causal = replace(REQUEST, plm=replace(PLM, family="progen"), fidelity_proteins=5, fidelity_single=3)
    assert stages(causal)["evaluate"]["tokens"]["fidelity"] == 50


def test_places_share_one_pass_and_have_a_store_each() -> None:
    one = stages(REQUEST)
    many = stages(
        replace(REQUEST, storing=replace(REQUEST.storing, captures=((1, "mlp"), (2, "residual"), (1, "attention"))))
    )
    assert many["extract_activations"]["flops"] == one["extract_activations"]["flops"]
    assert many["extract_activations"]["bytes"] == 3 * one["extract_activations"]["bytes"]
    assert many["train_sae"]["saes"] == 3
    assert many["train_sae"]["flops_dense"] == 3 * one["train_sae"]["flops_dense"]


def test_devices_share_an_extraction_but_not_an_sae() -> None:
    one = stages(REQUEST)
    four = stages(replace(REQUEST, machine=replace(REQUEST.machine, count=4)))
    five = stages(
        replace(REQUEST, machine=replace(REQUEST.machine, count=4), training=replace(REQUEST.training, saes=5))
    )
    assert four["extract_activations"]["seconds"]["floor"] == pytest.approx(5.6 / 4)
    assert four["train_sae"]["seconds"] == one["train_sae"]["seconds"]
    assert five["train_sae"]["seconds"]["floor"] == pytest.approx(2 * one["train_sae"]["seconds"]["floor"])
    assert five["train_sae"]["device_hours"]["floor"] == pytest.approx(5 * one["train_sae"]["device_hours"]["floor"])
    assert four["extract_activations"]["device_hours"] == one["extract_activations"]["device_hours"]


def test_money_is_only_what_was_stated() -> None:
    assert "cost" not in make_plan(REQUEST)["total"]
    total = make_plan(replace(REQUEST, machine=replace(REQUEST.machine, price=3600.0)))["total"]
    assert total["cost"]["floor"] == pytest.approx(total["seconds"]["floor"])
    assert total["cost"]["assumed"] == pytest.approx(2 * total["cost"]["floor"])


def test_a_bucket_takes_the_store_off_the_disk() -> None:
    total = make_plan(replace(REQUEST, storing=replace(REQUEST.storing, remote=True)))["total"]
    sae = 4 * (2 * 80 * 10 + 10 + 80 + 80)
    assert (total["disk_bytes"], total["bucket_bytes"]) == (sae, 16_336)
    assert make_plan(REQUEST)["total"]["disk_bytes"] == sae + 16_336


def test_what_does_not_fit_is_said() -> None:
    assert make_plan(REQUEST)["warnings"] == []
    small = replace(REQUEST.machine, free_disk=1e4, device=replace(DEVICE, memory=1e4), memory=1e3)
    said = make_plan(replace(REQUEST, machine=small))["warnings"]
    assert said[0].startswith("the working folder has 10 kB free, the run writes 23.4 kB")
    assert said[1].startswith("extract_activations needs 27 kB of memory")
    assert said[2].startswith("train_sae needs 83 kB of memory")
    assert said[3].startswith("shuffling 400 rows for 1 stores needs 16 kB of memory, this machine has 1 kB")
    assert len(said) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": replace(CORPUS, splits={**CORPUS.splits, "test": Lengths({101: 1})})}, "takes 100: set ingest.max"),
        ({"training": replace(REQUEST.training, tokens=64_000)}, "sees the training residues 100 times"),
        ({"training": replace(REQUEST.training, latents=8)}, "is narrower than the 10-wide rows"),
    ],
)
def test_what_makes_little_sense_is_said(changes: dict[str, Any], message: str) -> None:
    (said,) = make_plan(replace(REQUEST, **changes))["warnings"]
    assert message in said


def test_drivers_say_the_shares() -> None:
    plan = make_plan(REQUEST)
    hours = {name: stage["device_hours"]["floor"] for name, stage in plan["stages"].items()}
    share = hours["train_sae"] / sum(hours.values())
    assert plan["drivers"][0] == f"{share:.0%} of the time is the training of 1 SAE"
    assert "14% of the extraction is attention's quadratic term" in plan["drivers"]
    assert "stopping after the last wanted layer saves 50% of a full forward pass" in plan["drivers"]
    # 3,200 tokens a training, 640 stored training rows: even the first SAE is cheaper with a store.
    assert any(driver.startswith("storing activations pays from one SAE") for driver in plan["drivers"])
    three = make_plan(replace(REQUEST, training=replace(REQUEST.training, saes=3)))["drivers"]
    assert (
        "one `train_sae` per SAE reads 192 kB in all; the stage `sweep` trains the 3 of a store from one read, 64 kB"
        in three
    )
    few = make_plan(replace(REQUEST, training=replace(REQUEST.training, tokens=100)))["drivers"]
    assert any(driver.startswith("storing activations pays from 8 SAEs") for driver in few)
    assert "every SAE sees 16% of the stored training residues: fewer sequences would do" in few


def test_an_embedding_needs_no_forward_pass() -> None:
    plan = make_plan(replace(REQUEST, storing=replace(REQUEST.storing, captures=((0, "embedding"),))))
    assert plan["stages"]["extract_activations"]["flops"] == 0
    assert plan["stages"]["extract_activations"]["write_rate"] is None
    assert any("no forward pass" in driver for driver in plan["drivers"])
    assert "nan" not in render(plan)


@settings(max_examples=25, deadline=None)
@given(
    sequences=st.floats(10, 1e8), layer=st.integers(0, 4), saes=st.integers(1, 50), devices=st.integers(1, 64),
    architecture=st.sampled_from(["topk", "relu", "gated", "jump_relu", "matryoshka"]),
)  # fmt: skip
def test_every_plan_is_finite_json_and_twice_the_sequences_take_twice_the_forward_pass(
    sequences: float, layer: int, saes: int, devices: int, architecture: str
) -> None:
    lengths = log_normal(sequences, 60, shortest=8, longest=98)
    request = replace(
        REQUEST,
        corpus=Corpus("made up", {"train": lengths, "valid": lengths.scaled(0), "test": lengths.scaled(0)}),
        storing=replace(REQUEST.storing, captures=((layer, "residual"),)),
        training=replace(REQUEST.training, architecture=architecture, k=None, saes=saes),
        machine=replace(REQUEST.machine, count=devices),
    )
    plan = make_plan(request)
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert render(plan)
    double = Corpus("made up", {name: one.scaled(2) for name, one in request.corpus.splits.items()})
    twice = make_plan(replace(request, corpus=double))["stages"]["extract_activations"]
    assert twice["flops"] == pytest.approx(2 * plan["stages"]["extract_activations"]["flops"])


def test_the_text_holds_the_numbers() -> None:
    text = render(make_plan(replace(REQUEST, notes=("a note",), machine=replace(REQUEST.machine, price=1.0))))
    for expected in (
        "extract_activations  1 k     5.6 M", "32 steps, 5 epochs", "1 x 16.3 kB as bfloat16", "toy: 5.84 k parameters",
        "2 (residual): 2 of 4 blocks computed", "notes\n- a note", "cost      ", "50% of these rates",
    ):  # fmt: skip
        assert expected in text
    assert max(len(line) for line in text.splitlines()) <= 118
