"""`plmsae plan` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae import cli
from plmsae.planning.papers import paper_names

ROOT = Path(__file__).parents[2]
STATED = ("--device", "cpu", "--flops", "3e11", "--bandwidth", "2e10")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    device = () if "--device" in arguments else STATED
    assert cli.main(["plan", "--json", *device, *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["plan", *STATED, *arguments]) == 2
    return capsys.readouterr().err


def test_the_parameters_of_the_folder_are_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fasta = "".join(f">p{i}\n{'MKVLAWTREQ' * 5}\n" for i in range(100)) + ">short\nMKV\n"
    (tmp_path / "data" / "swissprot.tsv.gz").write_text(fasta)
    found = plan(capsys, "--set", "ingest.max_proteins=50")
    assert found["plm"]["name"] == "esm_small"
    assert {name: split["sequences"] for name, split in found["corpus"]["splits"].items()} == pytest.approx(
        {"train": 30, "valid": 10, "test": 10}
    )
    assert found["corpus"]["left_out"]["too_short"] == 1
    assert found["stages"]["extract_activations"]["rows"] == pytest.approx(2000)
    assert found["stages"]["extract_activations"]["tokens"] == pytest.approx(40 * 52)
    assert found["stages"]["train_sae"]["k"] == 32
    assert found["stages"]["train_sae"]["latents"] == 4096
    assert found["machine"]["source"] == "stated"


def test_a_corpus_holds_out_what_ingest_holds_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "corpus.fasta").write_text("".join(f">p{i}\n{'MKVLAWTREQ' * 5}\n" for i in range(100)))
    corpus = ("--set", "ingest.mode=corpus", "--set", "ingest.held_out_size=10", "--sequences", "corpus.fasta")
    for most, train in (("null", 80), ("70", 70), ("90", 80)):
        found = plan(capsys, *corpus, "--set", f"ingest.max_proteins={most}")
        sizes = {name: split["sequences"] for name, split in found["corpus"]["splits"].items()}
        assert sizes == pytest.approx({"train": train, "valid": 10, "test": 10})
        assert ("a subset" in found["corpus"]["description"]) == (train == 70)
    assert "100 sequences, and 50 are held out twice" in refused(capsys, *corpus, "--set", "ingest.held_out_size=50")


def test_a_table_of_ingest_is_taken_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"split": ["train"] * 3 + ["valid", "test"], "length": [5, 2000, 7, 9, 11]})
    pq.write_table(table, tmp_path / "sequences.parquet")
    found = plan(capsys, "--sequences", "sequences.parquet")
    assert found["stages"]["extract_activations"]["rows"] == 5 + 2000 + 7 + 9
    assert any("takes 1,022" in warning for warning in found["warnings"])


@pytest.mark.parametrize("name", paper_names())
def test_every_preset_is_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--preset", name, "--device", "h100")
    assert found["machine"]["device"] == "h100"
    assert found["notes"]
    extract, train = found["stages"]["extract_activations"], found["stages"]["train_sae"]
    assert extract["stores"] == len(extract["captures"])
    assert train["saes"] == extract["stores"] * (20 if name.startswith("interplm") else 1)
    assert 0.1 < found["total"]["device_hours"]["floor"] < 100


def test_interplm_8m_in_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--preset", "interplm-8m", "--device", "h100")
    extract, train = found["stages"]["extract_activations"], found["stages"]["train_sae"]
    assert (train["saes"], train["steps_per_sae"], train["latents"]) == (120, 500_000, 10_240)
    assert train["flops_dense"] == 120 * 500_000 * 2048 * 10 * 320 * 10_240  # five products: relu's step
    assert extract["rows"] == pytest.approx(5_010_000 * 250, rel=1e-4)
    assert extract["bytes"] == pytest.approx(6 * 5_010_000 * 250 * 1280, rel=1e-4)
    assert extract["captures"] == [{"layer": layer, "hook": "residual"} for layer in range(1, 7)]


def test_what_a_paper_gives_in_sequences_becomes_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    train = plan(capsys, "--preset", "interprot-650m")["stages"]["train_sae"]
    assert train["tokens_per_sae"] == pytest.approx(900_000 * 250, rel=1e-3)
    assert train["steps_per_sae"] == pytest.approx(900_000 / 48, rel=1e-3)
    changed = plan(capsys, "--preset", "interprot-650m", "--set", "train_sae.tokens=1000000")
    assert changed["stages"]["train_sae"]["tokens_per_sae"] == pytest.approx(1_000_000, rel=0.02)


def test_everything_can_be_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(
        capsys, "--preset", "reticular-3b-l36", "--layers", "9,18", "--hooks", "residual,mlp,embedding", "--saes", "3",
        "--num-sequences", "1e6", "--mean-length", "300", "--devices", "4", "--utilisation", "0.25", "--price", "2",
        "--set", "extract_activations.dtype=bfloat16", "--set", "train_sae.k=32",
        "--set", "extract_activations.plm=biohub/ESMC-600M",
    )  # fmt: skip
    extract, train = found["stages"]["extract_activations"], found["stages"]["train_sae"]
    places = [(item["layer"], item["hook"]) for item in extract["captures"]]
    assert places == [(9, "residual"), (9, "mlp"), (0, "embedding"), (18, "residual"), (18, "mlp")]
    assert (found["plm"]["d_model"], extract["row_bytes"], train["k"], train["saes"]) == (1152, 2304, 32, 15)
    assert found["corpus"]["splits"]["train"]["residues"] == pytest.approx(3e8)
    assert (found["machine"]["count"], found["machine"]["utilisation"]) == (4, 0.25)
    assert "; changed: extract_activations.dtype=bfloat16, train_sae.k=32" in found["title"]
    assert found["title"].endswith(
        "--layers 9,18, --hooks residual,mlp,embedding, --saes 3, --num-sequences 1e+06, --mean-length 300"
    )
    total = found["total"]
    assert total["cost"]["floor"] == pytest.approx(2 * total["device_hours"]["floor"])
    assert total["device_hours"]["assumed"] == pytest.approx(4 * total["device_hours"]["floor"])


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        (("--device", "h100"), "auto", "bfloat16"),
        (("--device", "h100"), "float32", "float32"),
        (STATED, "auto", "float32"),
        (STATED, "bfloat16", "bfloat16"),
    ],
)
def test_the_precision_of_the_extraction(
    device: tuple[str, ...], precision: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = ("--set", f"extract_activations.precision={precision}")
    extract = plan(capsys, *device, "--num-sequences", "1000", *setting)["stages"]["extract_activations"]
    assert extract["precision"] == expected
    assert extract["memory"]["weights"] == extract["memory"]["plm_parameters"] * (2 if expected == "bfloat16" else 4)


def test_residues_are_sequences_times_their_mean(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--residues", "1e9", "--set", "ingest.test_fraction=0.1", "--set", "ingest.valid_fraction=0.1")
    assert found["corpus"]["splits"]["train"]["residues"] == pytest.approx(8e8)
    assert found["corpus"]["mean_length"] == pytest.approx(250)


def test_the_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--preset", "reticular-8m", *STATED]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "16 x 320 = 5,120 and 10,240 = 32 x 320" in text
    assert "what drives it" in text
    assert text.startswith("Reticular, SAEFold (Parsan et al. 2025), ESM-2 8M, TopK PLM")
    assert "assumptions - floor: matrix products at 300 GFLOP/s in the extraction (float32)" in text


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(paper_names())
    assert cli.main(["plan", "--presets", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(paper_names())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "interplm"), "did you mean 'interplm-8m'?"),
        (("--preset", "interplm-8m", "--params", "params.yaml"), "--preset and --params are both given"),
        (("--params", "other.yaml"), "parameter file 'other.yaml' does not exist"),
        ((), "'data/swissprot.tsv.gz' is not on this disk"),
        (("--num-sequences", "10", "--set", "extract_activations.plm=esm_smal"), "did you mean 'esm_small'?"),
        (("--num-sequences", "10", "--set", "train_sae.kk=8"), "unknown parameter 'train_sae.kk'"),
        (("--num-sequences", "10", "--set", "train_sae.k=5000"), "k = 5000 is larger than the dictionary of 4096"),
        (("--num-sequences", "10", "--layers", "1,x"), "'1,x' is not a list of layers"),
        (("--num-sequences", "10", "--layers", "9"), "'esm_small' has no layer 9 with hook 'residual'"),
        (("--num-sequences", "10", "--hooks", "mpl"), "no hook 'mpl'"),
        (("--num-sequences", "0"), "0.0 is not a number above 0"),
        (("--num-sequences", "nan"), "nan is not a number above 0"),
        (("--num-sequences", "10", "--utilisation", "1.5"), "a utilisation of 1.5 is more than all"),
        (("--num-sequences", "10", "--devices", "0"), "0 is not a number above 0"),
        (("--num-sequences", "10", "--price", "-1"), "-1.0 is not a number above 0"),
        (("--num-sequences", "10", "--mean-length", "5"), "cannot have a mean length of 5"),
        (("--sequences", "params.yaml", "--mean-length", "5"), "--sequences has lengths of its own"),
        (("--sequences", "nothing.fasta"), "the file 'nothing.fasta' does not exist"),
        (("--num-sequences", "10", "--device", "h10"), "did you mean 'h100'?"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)


def test_broken_sequences_are_a_data_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "broken.fasta").write_text(">a\nMK1V\n")
    assert cli.main(["plan", *STATED, "--sequences", "broken.fasta"]) == 3
    assert "broken.fasta, line 2" in capsys.readouterr().err


def test_a_parameter_file_must_have_the_sections(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = yaml.safe_load((tmp_path / "params.yaml").read_text())
    del data["train_sae"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(data))
    assert "no section 'train_sae'" in refused(capsys, "--num-sequences", "10")


@pytest.mark.parametrize("arguments", [["--help"], ["--presets"], ["--preset", "interplm-8m", "--device", "h100"]])
def test_no_torch_is_imported_unless_the_processor_is_measured(arguments: list[str]) -> None:
    script = (
        "import sys; from plmsae.cli import main\n"
        "try: main(['plan', *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'pandas', 'numpy', 'pyarrow'}), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stderr.strip() == "[]"


def test_the_example_of_the_documentation_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "how-to" / "plan.md").read_text(encoding="utf-8")
    command, example = page.partition("    $ plmsae ")[2].split("\n", 1)
    example = example.partition("\n## ")[0]
    shown = "\n".join(line.removeprefix("    ") for line in example.splitlines()).strip()
    assert cli.main(command.split()) == 0
    assert capsys.readouterr().out.strip() == shown


def test_a_stage_that_would_not_use_the_device_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--num-sequences", "1000", "--device", "h100")
    assert plan(capsys, *arguments, "--set", "train_sae.device=cpu")["notes"] == [
        "extract_activations.device is cpu: set it to cuda, or this stage does not run on the h100",
        "train_sae.device is cpu: set it to cuda, or this stage does not run on the h100",
    ]
    assert plan(capsys, *arguments, "--set", "extract_activations.device=cuda")["notes"] == []
    assert plan(capsys, "--num-sequences", "1000")["notes"] == []
