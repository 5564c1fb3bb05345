"""The programs of scripts/small_lm, and the model they made."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import EsmForMaskedLM

from plmsae.errors import DataError, UserError
from scripts.small_lm import assess, split
from scripts.small_lm.baselines import EDGE, fit, triples
from scripts.small_lm.encoder import PackedEncoder
from scripts.small_lm.packing import Batch, assemble, documents, hide, pack
from scripts.small_lm.sequences import ALPHABET, CLS, EOS, MASK, PAD, encode, read_sequences
from scripts.small_lm.train import Settings, new_model, train

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src" / "plmsae" / "plms" / "small"
HELD_OUT = ROOT / "tests" / "fixtures" / "small_lm_heldout.fasta"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
TINY = Settings(
    hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, max_residues=62, batch_tokens=256,
    steps=7, warmup_steps=2, decay_steps=3, dtype="float32",
)  # fmt: skip


def random_sequences(number: int, low: int, high: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), rng.integers(low, high + 1))) for _ in range(number)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class TestSequences:
    def test_tokens_are_those_of_esm2(self) -> None:
        # `vocab.txt` of facebook/esm2_t6_8M_UR50D: L is token 4, A 5, C 23, X 24, the mask 32.
        assert len(ALPHABET) == 33
        assert ALPHABET[MASK] == "<mask>"
        assert ALPHABET[PAD] == "<pad>"
        assert encode("LACX*").tolist() == [CLS, 4, 5, 23, 24, 3, EOS]

    def test_fasta_gzip_and_json_read_the_same(self, tmp_path: Path) -> None:
        with gzip.open(tmp_path / "a.fasta.gz", "wt") as handle:
            handle.write(">one text\nacd\nEF\n>two\nGHI\n")
        (tmp_path / "a.json").write_text('{"one": "ACDEF", "two": "GHI"}')
        expected = [("one", "ACDEF"), ("two", "GHI")]
        assert read_sequences(tmp_path / "a.fasta.gz") == expected == read_sequences(tmp_path / "a.json")

    @pytest.mark.parametrize("content", [b"", b"no header", b">one\n>two\nACD\n", "\xe9".encode()])
    def test_nothing_to_read_is_a_data_error(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.fasta").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.fasta"):
            read_sequences(tmp_path / "a.fasta")

    def test_truncated_gzip_is_a_data_error(self, tmp_path: Path) -> None:
        data = gzip.compress(b">one\n" + b"ACDEFGHIKL" * 1000)
        (tmp_path / "a.fasta.gz").write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match="cannot read"):
            read_sequences(tmp_path / "a.fasta.gz")


class TestSplit:
    @pytest.fixture(scope="class")
    @staticmethod
    def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, dict[str, object], list[list[str]]]:
        """Families of four: a random protein and three copies with a tenth of their residues changed."""
        folder = tmp_path_factory.mktemp("split")
        rng = np.random.default_rng(3)
        families = []
        for ancestor in random_sequences(30, 150, 200, seed=1):
            family = [ancestor]
            for _ in range(3):
                copy = np.array(list(ancestor))
                at = rng.choice(len(copy), len(copy) // 10, replace=False)
                copy[at] = rng.choice(list(LETTERS), len(at))
                family.append("".join(copy))
            families.append(family)
        # The last copy of families 0 and 1 is a benchmark's; only their three relatives are in the FASTA.
        members = [s for i, family in enumerate(families) for s in (family[:3] if i < 2 else family)]
        (folder / "in.fasta").write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(members)))
        (folder / "bench.fasta").write_text(f">t0\n{families[0][3]}\n")
        (folder / "bench.json").write_text(json.dumps({"x": families[1][3]}))
        arguments = [str(folder / "in.fasta"), "--output", str(folder / "out"), "--one-in", "4", "--threads", "1"]
        split.main([*arguments, "--hold-out", str(folder / "bench.fasta"), "--hold-out", str(folder / "bench.json")])
        summary = json.loads((folder / "out" / "split.json").read_text())
        digest = hashlib.sha256((folder / "in.fasta").read_bytes()).hexdigest()
        assert summary["inputs"][0] == {"file": "in.fasta", "sha256": digest, "sequences": len(members)}
        return pd.read_parquet(folder / "out" / "split.parquet"), summary, families

    def test_no_cluster_straddles_two_splits(
        self, outcome: tuple[pd.DataFrame, dict[str, object], list[list[str]]]
    ) -> None:
        table, summary, families = outcome
        assert (table.groupby("cluster")["split"].nunique() == 1).all()
        assert set(table["split"]) == {"train", "valid", "test", "excluded"}
        of_sequence = dict(zip(table["sequence"], table["split"], strict=True))
        for family in families:  # the clusters are the families
            assert len({of_sequence[s] for s in family if s in of_sequence}) == 1
        assert summary["sequences"] == table["split"].value_counts().to_dict()

    def test_relatives_of_held_out_sequences_are_excluded(
        self, outcome: tuple[pd.DataFrame, dict[str, object], list[list[str]]]
    ) -> None:
        table, _, families = outcome
        excluded = set(table.loc[table["split"] == "excluded", "sequence"])
        assert excluded == {*families[0][:3], *families[1][:3]}

    def test_splits_follow_the_clusters_hash(self) -> None:
        names = [f"b{i}" for i in range(5000)]
        splits = split.assign(names, ["b7"], one_in=50)
        assert splits == split.assign(names, ["b7"], one_in=50)
        assert splits[7] == "excluded"
        # md5("b0") = ...: worked out with `md5sum`, the remainder of 50 by bc.
        for name, got in zip(names[:200], splits[:200], strict=True):
            rest = int(hashlib.md5(name.encode()).hexdigest(), 16) % 50
            assert name == "b7" or got == {0: "test", 1: "valid"}.get(rest, "train")
        assert 60 < splits.count("test") < 140
        assert 60 < splits.count("valid") < 140


class TestPacking:
    def test_every_document_once_and_little_padding(self) -> None:
        lengths = np.random.default_rng(0).integers(30, 1025, 5000).tolist()
        plan = pack(lengths, 8192, np.random.default_rng(1), chunk=1000)
        assert sorted(i for chosen in plan for i in chosen) == list(range(5000))
        assert max(sum(lengths[i] for i in chosen) for chosen in plan) <= 8192
        assert sum(lengths) / (8192 * len(plan)) > 0.99
        assert plan != pack(lengths, 8192, np.random.default_rng(2), chunk=1000)

    def test_long_sequences_are_cut_into_equal_pieces(self) -> None:
        pieces = documents([encode("A" * 20), encode("L" * 150)], 64)
        assert [len(p) for p in pieces] == [22, 51, 51, 50]
        assert [int(p[0]) for p in pieces] == [CLS, CLS, 4, 4]
        assert [int(p[-1]) for p in pieces] == [EOS, 4, 4, EOS]

    def test_masks(self) -> None:
        batch = assemble([encode("ACX" * 400), encode("LLLL")], [1, 0], 1300)
        assert batch.lengths == [6, 1202, 92]
        masked = hide(batch, 0.3, np.random.default_rng(0))
        assert np.array_equal(batch.ids[masked.selected], masked.targets)
        assert set(masked.targets.tolist()) <= {4, 5, 23}  # never X, cls, eos or pad
        untouched = np.setdiff1d(np.arange(1300), masked.selected)
        assert np.array_equal(masked.ids[untouched], batch.ids[untouched])
        assert 0.72 < (masked.ids[masked.selected] == MASK).mean() < 0.88
        # token_dropout by hand for the second document
        inside = slice(6, 1208)
        fraction = (masked.ids[inside] == MASK).sum() / 1202
        kept = masked.ids[inside] != MASK
        np.testing.assert_allclose(masked.scale[inside][kept], 0.88 / (1 - fraction), rtol=1e-6)
        assert (masked.scale[inside][~kept] == 0).all()
        everything = hide(batch, 0.3, np.random.default_rng(0), corrupt=False)
        assert (everything.ids[everything.selected] == MASK).all()


class TestEncoder:
    def test_packed_equals_alone_in_transformers(self) -> None:
        """No attention across documents: packed logits equal those of transformers, one protein at a time."""
        model = new_model(TINY).eval()
        with torch.no_grad():  # a fresh model barely attends; make its attention matter
            for parameter in model.parameters():
                parameter.mul_(3.0)
        pieces = [encode(s) for s in random_sequences(5, 20, 60)]
        batch = assemble(pieces, [3, 0, 4, 1], 300)
        masked = hide(batch, 0.3, np.random.default_rng(0))
        with torch.inference_mode():
            got = model.lm_head(PackedEncoder(model, dtype=torch.float32).hidden(masked, batch.lengths))
            start = 0
            for length in batch.lengths[:-1]:
                ids = torch.from_numpy(masked.ids[start : start + length])[None]
                expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
                torch.testing.assert_close(got[start : start + length], expected, rtol=1e-4, atol=1e-4)
                start += length

    def test_a_document_does_not_see_its_neighbours(self) -> None:
        model = new_model(TINY)
        encoder = PackedEncoder(model, dtype=torch.float32)
        first, second, third = (encode(s) for s in random_sequences(3, 40, 40))

        def losses(pieces: list[np.ndarray]) -> torch.Tensor:
            batch = assemble(pieces, range(len(pieces)), sum(map(len, pieces)))
            masked = hide(Batch(batch.ids, batch.lengths), 0.3, np.random.default_rng(0), corrupt=False)
            return encoder.losses(batch, masked)[(masked.selected < 42)]

        torch.testing.assert_close(losses([first, second]), losses([first, third]))


class TestTraining:
    TABLE = pd.DataFrame({"sequence": random_sequences(60, 20, 100), "split": ["train"] * 50 + ["valid"] * 10})

    def run(self, folder: Path, settings: Settings = TINY, stop_at: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        train(self.TABLE, folder, settings, compiled=False, checkpoint_every=2, stop_at=stop_at)

    def test_a_killed_run_goes_on_as_if_it_had_not_stopped(self, tmp_path: Path) -> None:
        self.run(tmp_path / "whole")
        for stop in (3, 5):  # the checkpoints left behind are those of steps 2 and 4
            self.run(tmp_path / "killed", stop_at=stop)
        self.run(tmp_path / "killed")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
        histories = [json.loads((tmp_path / n / "training.json").read_text())["history"] for n in ("whole", "killed")]
        losses = [[(row["step"], row["tokens"], row["valid"]) for row in history] for history in histories]
        assert losses[0] == losses[1]
        assert [step for step, _, _ in losses[0]] == [2, 4, 6, 7]

    def test_the_written_model_is_the_trained_one_in_half(self, tmp_path: Path) -> None:
        self.run(tmp_path / "run")
        trained = load_file(tmp_path / "run" / "checkpoint.safetensors")
        model, info = EsmForMaskedLM.from_pretrained(tmp_path / "run", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert model.dtype == torch.float32
        assert model.config.token_dropout
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, trained[f"model.{name}"].half().float())
        written = load_file(tmp_path / "run" / "model.safetensors")
        exact = 10000 ** (-torch.arange(0, 16, 2, dtype=torch.float32) / 16)
        torch.testing.assert_close(written["esm.rotary_embeddings.inv_freq"], exact, rtol=1e-6, atol=0)
        fresh = dict(new_model(TINY).named_parameters())
        assert not torch.equal(
            fresh["esm.encoder.layer.1.output.dense.weight"], trained["model.esm.encoder.layer.1.output.dense.weight"]
        )

    def test_settings_may_not_change_on_the_way(self, tmp_path: Path) -> None:
        self.run(tmp_path / "run", stop_at=3)
        with pytest.raises(UserError, match="seed is 1, but 0 in the checkpoint"):
            self.run(tmp_path / "run", Settings(**{**vars(TINY), "seed": 1}))
        # The decay has not begun at step 2, so its length may still change.
        nine = Settings(**{**vars(TINY), "steps": 9, "decay_steps": 5})
        self.run(tmp_path / "run", nine, stop_at=7)
        # Step 6 is at 3/5 of the rate: with 12 steps in all, 6 are left, and 6/10 is the decay that goes on smoothly.
        with pytest.raises(UserError, match=r"jump from 0\.600 to 1\.000") as caught:
            self.run(tmp_path / "run", Settings(**{**vars(TINY), "steps": 12, "decay_steps": 5}))
        assert caught.value.fix == "with 12 steps, the decay that goes on smoothly has 10 steps"
        twelve = Settings(**{**vars(TINY), "steps": 12, "decay_steps": 10})
        self.run(tmp_path / "run", twelve)
        assert json.loads((tmp_path / "run" / "training.json").read_text())["settings"]["steps"] == 12

    def test_a_damaged_checkpoint_is_a_data_error(self, tmp_path: Path) -> None:
        self.run(tmp_path / "run", stop_at=3)
        file = tmp_path / "run" / "checkpoint.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(DataError, match="not a checkpoint"):
            self.run(tmp_path / "run")

    def test_schedule(self) -> None:
        settings = Settings(steps=100, warmup_steps=10, decay_steps=40)
        assert [settings.rate(step) for step in (0, 9, 60, 80)] == pytest.approx([0.1, 1.0, 1.0, 0.5])
        assert [settings.masking(step) for step in (0, 60, 80, 100)] == pytest.approx([0.25, 0.25, 0.2, 0.15])


class TestBaselines:
    def test_triples_by_hand(self) -> None:
        # tokens L 0, A 1, G 2; X and the termini are EDGE, and X is never a centre
        assert triples(["LAXG"]).tolist() == [[EDGE, 0, 1], [0, 1, EDGE], [EDGE, 2, EDGE]]
        assert triples(["LAXG", "AG"], [np.array([2]), np.array([1])]).tolist() == [[0, 1, EDGE], [EDGE, 1, 2]]

    def test_neighbours_find_what_is_there(self) -> None:
        # Every residue is fixed by its left neighbour, the residues are uniform: unigram ln 20, neighbours near 0.
        rng = np.random.default_rng(0)
        sequences = ["".join(LETTERS[(s + i) % 20] for i in range(200)) for s in rng.integers(0, 20, 50)]
        model = fit(triples(sequences[:40]), triples(sequences[40:45]))
        x = triples(sequences[45:])
        assert model.unigram_losses(x).mean() == pytest.approx(math.log(20), abs=0.01)
        assert model.losses(x).mean() < 0.1
        p = model.components(np.array([[3, c, 7] for c in range(20)]))
        np.testing.assert_allclose(p.sum(0), 1.0)  # each component is a distribution over the centre

    def test_interval_covers_and_is_exact_in_the_middle(self) -> None:
        weights = np.random.default_rng(0).multinomial(3, np.full(3, 1 / 3), 500).astype(float)
        value, low, high = assess.interval(np.array([2.0, 6.0, 1.0]), np.array([1.0, 2.0, 1.0]), weights)
        assert value == 2.25
        assert 1.0 <= low < value < high <= 3.0


class TestShippedModel:
    def test_size_and_card(self) -> None:
        file = SHIPPED / "model.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert file.stat().st_size <= 8_000_000
        assert digest in (SHIPPED / "CARD.md").read_text()
        assert json.loads((SHIPPED / "assessment.json").read_text())["model_sha256"] == digest

    def test_the_assessment_is_won_with_intervals(self) -> None:
        results = json.loads((SHIPPED / "assessment.json").read_text())["results"]
        own = results.pop("this LM")["cross_entropy"]
        assert {"unigram", "both neighbours' counts, interpolated", "this LM, every parameter tensor permuted"} <= set(
            results
        )
        for row in results.values():
            value, low, _ = row["difference"]
            assert low > 0
            assert value == pytest.approx(row["cross_entropy"][0] - own[0], abs=1e-4)

    def test_the_card_shows_the_assessment(self) -> None:
        report = json.loads((SHIPPED / "assessment.json").read_text())
        card = (SHIPPED / "CARD.md").read_text()
        for line in assess.table(report["results"]).strip().splitlines():
            assert line in card

    def test_beats_residue_frequencies_and_permuted_weights_on_held_out_proteins(self) -> None:
        """Real proteins of the test split; the frequencies are fitted to these very proteins, which favours them."""
        sequences = [sequence for _, sequence in read_sequences(HELD_OUT)]
        assert len(sequences) == 40
        counts = np.array(["".join(sequences).count(letter) for letter in LETTERS], dtype=float)
        frequencies = counts / counts.sum()
        unigram = -(frequencies * np.log(frequencies)).sum()
        losses = {"shipped": 0.0, "permuted": 0.0}
        total = 0
        model = assess.load(SHIPPED)
        for label in losses:
            if label == "permuted":
                model = assess.permuted(model, 0)
            for seed in range(3):
                chosen = assess.choose(sequences, seed)
                losses[label] += assess.model_losses(model, sequences, chosen, label).sum()
                total += sum(map(len, chosen))
        shipped, permuted = (loss / (total / 2) for loss in losses.values())
        assert shipped < unigram - 0.02
        assert permuted > unigram
