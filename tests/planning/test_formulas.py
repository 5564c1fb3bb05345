"""The formulas against torch's counter, the real classes and real files; and against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from plmsae.activations import chunks, writer
from plmsae.activations import rows as stored
from plmsae.activations.metadata import DTYPES
from plmsae.errors import UserError
from plmsae.planning import formulas as f
from plmsae.planning.models import Transformer, known_names, transformer
from plmsae.plms.base import HOOKS
from plmsae.saes import SaeConfig, build, save, trainable_architectures


def tiny(family: str, head_dim: int = 8, vocabulary: int = 33) -> Transformer:
    return Transformer("tiny", family, 3, 32, 4, head_dim, 80, vocabulary, 2, 96)


def real_model(plm: Transformer, *, headless: bool = False) -> torch.nn.Module:
    """transformers' class with the dimensions of `plm`."""
    import transformers as t

    common: dict[str, Any] = {"vocab_size": plm.vocabulary}
    if plm.family == "t5":
        config: Any = t.T5Config(
            d_model=plm.d_model, d_kv=plm.head_dim, num_heads=plm.heads, d_ff=plm.ffn, num_layers=plm.layers,
            feed_forward_proj="relu", **common,
        )  # fmt: skip
        return t.T5EncoderModel._from_config(config, attn_implementation="eager").eval()
    if plm.family == "progen":
        config = t.CodeGenConfig(
            n_embd=plm.d_model, n_layer=plm.layers, n_head=plm.heads, n_positions=128, rotary_dim=8, n_inner=plm.ffn,
            bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, **common,
        )  # fmt: skip
        return (t.CodeGenModel if headless else t.CodeGenForCausalLM)(config).eval()
    common |= {
        "hidden_size": plm.d_model, "num_hidden_layers": plm.layers, "num_attention_heads": plm.heads,
        "intermediate_size": plm.ffn,
    }  # fmt: skip
    if plm.family == "esmc":
        config = t.EsmcConfig(**common)
        kind: Any = t.EsmcModel if headless else t.EsmcForMaskedLM
    else:
        config = t.EsmConfig(
            **common, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=True,
            emb_layer_norm_before=False, max_position_embeddings=1026,
        )  # fmt: skip
        kind = t.EsmModel if headless else t.EsmForMaskedLM
    arguments = {"add_pooling_layer": False} if headless and plm.family == "esm" else {}
    return kind._from_config(config, attn_implementation="eager", **arguments).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", known_names())
def test_parameters_are_those_of_the_real_class(name: str) -> None:
    plm = transformer(name)
    with torch.device("meta"):
        model = real_model(plm)
    assert f.plm_parameters(plm) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("facebook/esm2_t6_8M_UR50D", 7.5), ("facebook/esm2_t12_35M_UR50D", 33.5),
        ("facebook/esm2_t30_150M_UR50D", 148.1), ("facebook/esm2_t33_650M_UR50D", 651.0),
        ("facebook/esm2_t36_3B_UR50D", 2839.0), ("facebook/esm2_t48_15B_UR50D", 15129.1),
        ("biohub/ESMC-300M", 333.0), ("biohub/ESMC-600M", 575.0), ("biohub/ESMC-6B", 6352.0),
        ("Rostlab/prot_t5_xl_uniref50", 1208.1), ("hugohrban/progen2-small", 151.1), ("esm_small", 3.86),
    ],
)  # fmt: skip
def test_known_models_have_their_published_sizes(name: str, millions: float) -> None:
    assert f.plm_parameters(transformer(name)) / 1e6 == pytest.approx(millions, abs=0.06)


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "plm", [tiny("esm"), tiny("esmc", vocabulary=64), tiny("t5", 16, 128), tiny("progen", vocabulary=32)],
    ids=lambda plm: plm.family,
)  # fmt: skip
def test_a_forward_pass_takes_the_flops_that_torch_counts(plm: Transformer) -> None:
    model, T = real_model(plm, headless=True), 37
    ids = torch.arange(T)[None] % 20 + 4
    with torch.no_grad():
        found = counted(lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)))
    total, quadratic = f.forward_flops(plm, [(plm.layers, False)], T, T * T)
    assert total == found
    assert quadratic == plm.layers * 4 * T * T * plm.attention


def test_the_head_takes_the_flops_that_torch_counts() -> None:
    plm, T = tiny("esm"), 19
    model = real_model(plm)
    ids = torch.arange(T)[None] % 20 + 4
    with torch.no_grad():
        found = counted(lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)))
    assert found - f.forward_flops(plm, [(3, False)], T, T * T)[0] == f.language_head_flops(plm, T)


class StopError(Exception):
    """Ends a forward pass."""


@pytest.mark.parametrize(
    ("layer", "hook"), [(1, "residual"), (2, "mlp"), (1, "attention"), (3, "attention"), (3, "residual")]
)
def test_a_pass_that_stops_at_a_hook_takes_the_flops_that_torch_counts(layer: int, hook: str) -> None:
    plm, T = tiny("esm"), 23
    model = real_model(plm, headless=True)
    block = model.encoder.layer[layer - 1]  # type: ignore[union-attr,index]

    def stop(*_: object) -> None:
        raise StopError

    (block.attention if hook == "attention" else block).register_forward_hook(stop)
    ids = torch.arange(T)[None] % 20 + 4

    def run() -> None:
        with torch.no_grad(), pytest.raises(StopError):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))

    assert counted(run) == f.forward_flops(plm, [f.depth(plm, layer, hook)], T, T * T)[0]


def test_esm2_8m_by_hand() -> None:
    # One block: 4 x 320 x 320 + 2 x 320 x 1,280 = 1,228,800 weights, 2 FLOP each; attention 4 T^2 x 320.
    plm = transformer("facebook/esm2_t6_8M_UR50D")
    assert f.forward_flops(plm, [(1, False)], 1000, 1000**2) == (2_457_600 * 1000 + 1280 * 10**6, 1280 * 10**6)
    assert f.forward_flops(plm, [(2, True), (1, False)], 10, 100) == (
        2 * 2_457_600 * 10 + 819_200 * 10 + 3 * 1280 * 100,
        3 * 1280 * 100,
    )


def test_hooks_are_those_of_the_models() -> None:
    assert set(f.HOOKS) == set(HOOKS)
    plm = tiny("esm")
    assert f.depth(plm, 0, "embedding") == (0, False)
    assert f.depth(plm, 2, "attention") == (1, True)
    assert f.depth(plm, 3, "final_norm") == f.depth(plm, 3, "residual") == f.depth(plm, 3, "mlp") == (3, False)


@pytest.mark.parametrize(
    ("layer", "hook", "fix"),
    [
        (4, "residual", "use 0 to 3"),
        (0, "mlp", "use 1 to 3"),
        (1, "embedding", "use 0"),
        (2, "final_norm", "use 3"),
        (1, "mpl", "did you mean 'mlp'?"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(layer: int, hook: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        f.depth(tiny("esm"), layer, hook)
    assert caught.value.fix == fix


# ---- the store ---------------------------------------------------------------------------------------------------


def test_constants_are_those_of_the_store() -> None:
    assert f.CHUNK_BYTES == writer.CHUNK_BYTES
    assert f.BLOCK_HEADER_BYTES == chunks._HEADER
    assert f.SCALE_BYTES == stored.SCALE_BYTES
    assert set(f.VALUE_BYTES) == set(DTYPES)


@pytest.mark.parametrize("dtype", sorted(f.VALUE_BYTES))
@pytest.mark.parametrize(("rows", "block_rows", "part_rows"), [(1000, 64, 10_000), (1000, 64, 500), (7, 64, 100)])
def test_a_written_store_has_the_size_that_was_planned(
    tmp_path: Path, dtype: str, rows: int, block_rows: int, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (writer, f):
        monkeypatch.setattr(module, "CHUNK_BYTES", 20_000)  # so that there are several files
    size, parts, blocks, files = f.store_size(rows, 24, dtype, block_rows=block_rows, part_rows=part_rows)
    written = []
    for part in range(parts):
        values = stored.encode(torch.zeros(rows // parts, 24), getattr(torch, dtype))
        index = writer.write_chunks(tmp_path / str(part), values, torch.arange(len(values)), block_rows)
        written += [(chunk["chunk_size"], chunk["chunk_bytes"]) for chunk in index["chunks"]]
    on_disk = [path.stat().st_size for path in tmp_path.rglob("*.bin")]
    assert len(on_disk) == len(written) == files
    assert sum(number for number, _ in written) == blocks
    assert sum(on_disk) == sum(count for _, count in written) == size


def test_an_empty_split_takes_nothing() -> None:
    assert f.store_size(0, 24, "float32", block_rows=64, part_rows=100) == (0, 0, 0, 0)


def test_the_papers_store_by_hand() -> None:
    # 2.5e9 residues x 2,560 x 4 bytes, and 24 bytes beside each block of 2,048 rows.
    size, parts, _, files = f.store_size(2.5e9, 2560, "float32", block_rows=2048, part_rows=262_144)
    assert size == pytest.approx(25.6e12, rel=1e-5)
    assert parts == 9537
    assert files == 9537 * 43  # 128 blocks a part, 3 of 21 MB to a file of 64 MiB


# ---- the dictionary ----------------------------------------------------------------------------------------------

D, N, K, B = 24, 160, 8, 64


def sae_config(architecture: str) -> SaeConfig:
    options = {"group_sizes": [40, 120], "reduction": "paper"} if architecture == "matryoshka" else {}
    return SaeConfig(
        architecture=architecture, d_model=D, dictionary_size=N, k=K if architecture in f.SPARSE else N, plm="p",
        plm_revision="r", layer=1, hook="residual", normaliser={"kind": "rms", "scale": 1.0, "folded": False},
        options=options,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", trainable_architectures())
def test_parameters_and_file_of_a_real_sae(architecture: str, tmp_path: Path) -> None:
    sae = build(sae_config(architecture))
    assert f.sae_parameters(architecture, D, N) == sum(parameter.numel() for parameter in sae.parameters())
    if sae.calibrated:
        sae.threshold.fill_(0.5)  # type: ignore[operator,union-attr]
    save(sae, tmp_path)
    content = (tmp_path / "sae.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == f.sae_file_bytes(architecture, D, N)


@pytest.mark.parametrize("architecture", trainable_architectures())
def test_a_dense_step_takes_the_flops_that_torch_counts(architecture: str) -> None:
    sae = build(sae_config(architecture))
    sae.kernel = "reference" if architecture in f.SPARSE else "auto"
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    summed = 2 * D * N if architecture in ("relu", "gated") else 0  # b_dec's gradient: one row, whatever the batch
    assert counted(lambda: sae.loss(x).total.backward()) == f.dense_flops(architecture, D, N, B) + summed  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("architecture", f.SPARSE)
def test_a_sparse_step_multiplies_the_encoder_alone(architecture: str) -> None:
    sae = build(sae_config(architecture))
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    found = counted(lambda: sae.loss(x).total.backward())  # type: ignore[no-untyped-call]
    encoder = f.sparse_flops(D, N, K, B) - 8 * B * K * D
    assert encoder == 2 * B * D * N
    assert found == encoder


@pytest.mark.parametrize(
    ("d", "n", "k", "batch", "dense", "sparse"),
    [(320, 10240, 100, 2048, 80.5, 13.9), (320, 10240, 32, 8192, 322, 54.4), (2560, 20480, 100, 8192, 5154, 876)],
)
def test_steps_by_hand_in_gigaflop(d: int, n: int, k: int, batch: int, dense: float, sparse: float) -> None:
    assert f.dense_flops("topk", d, n, batch) / 1e9 == pytest.approx(dense, rel=2e-3)
    assert f.sparse_flops(d, n, k, batch) / 1e9 == pytest.approx(sparse, rel=4e-3)


def test_adam_holds_the_memory_of_a_real_step() -> None:
    sae = build(sae_config("relu"))
    optimiser = torch.optim.Adam(sae.parameters())
    sae.loss(torch.ones(4, D)).total.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    held = 0
    for parameter in sae.parameters():
        state = [value for value in optimiser.state[parameter].values() if value.numel() > 1]
        held += sum(tensor.nbytes for tensor in (parameter, parameter.grad, *state) if tensor is not None)
    assert held == f.adam_memory(f.sae_parameters("relu", D, N))


def test_times_by_hand_in_microseconds() -> None:
    # d 2,560, n 20,480, k 100, B 2,048 on 790 TFLOP/s and 4.3 TB/s.
    peak, bandwidth = 790e12, 4.3e12
    parameters = f.sae_parameters("topk", 2560, 20480)
    assert f.seconds(f.dense_flops("topk", 2560, 20480, 2048), 0, peak, bandwidth) == pytest.approx(1631e-6, rel=1e-3)
    assert f.adam_traffic(parameters, 1) / bandwidth == pytest.approx(683e-6, rel=1e-3)
    assert f.selection_traffic(20480, 2048, 2) / bandwidth == pytest.approx(39e-6, rel=2e-3)
    assert f.gather_traffic(2560, 100, 2048, 2) / bandwidth == pytest.approx(4 * 244e-6, rel=2e-3)


def test_batches_by_hand() -> None:
    assert f.batch_memory(10, 3, 100, 2) == 100 * (30 + 12) * 2
    # ESM-2 8M: 2 x 320 and 1,280 values a token (4 x 320 = 1,280 as well); ESM C's gate doubles its f of 80.
    assert f.forward_memory(transformer("facebook/esm2_t6_8M_UR50D"), 4096, 4) == 4096 * (640 + 1280) * 4
    assert f.forward_memory(tiny("esmc"), 10, 2) == 10 * (64 + 160) * 2


@pytest.mark.parametrize(("stored", "tokens", "first"), [(1.25e9, 1.024e9, 2), (2.5e9, 2.500002e9, 2), (1e6, 4e6, 1)])
def test_a_store_pays_from(stored: float, tokens: float, first: int) -> None:
    assert f.stores_pay_from(stored, tokens) == first


@given(stored=st.integers(1, 10**6), tokens=st.integers(1, 10**6))
def test_a_store_pays_from_the_first_number_that_saves_a_tenth(stored: int, tokens: int) -> None:
    first = f.stores_pay_from(stored, tokens)
    assert 10 * first * tokens >= 11 * stored > 10 * (first - 1) * tokens


def test_the_config_of_the_bundled_model_is_read() -> None:
    folder = Path(f.__file__).parents[1] / "plms" / "small"
    raw = json.loads((folder / "config.json").read_text())
    assert (transformer("esm_small").d_model, transformer("esm_small").ffn) == (256, raw["intermediate_size"])
