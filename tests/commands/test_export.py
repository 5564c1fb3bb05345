"""`plmsae export` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch

from plmsae import cli
from plmsae.errors import UserError
from plmsae.plms import load_plm
from plmsae.registry.load import load
from plmsae.saes import save
from plmsae.saes.formats import export_formats, export_sae, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import LAYER_NORM, TOLD

ORIGIN = ["--plm", "esm_small", "--revision", "sha256:00", "--layer", "4", "--hook", "residual"]


def test_an_sae_folder_is_written_for_another_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = generic_sae().folded(2.5).requires_grad_(False)
    save(sae, tmp_path / "sae")
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "sae"), "--format", "saelens", "--output", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == ["cfg.json", "sae_weights.safetensors"]
    assert (answer["architecture"], answer["format"], answer["output"]) == ("topk", "saelens", str(out))
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(import_sae(out, "saelens", **TOLD)(x), sae(x))
    assert cli.main(["export", str(tmp_path / "sae"), "--format", "saelens", "--output", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_refusals_have_a_message_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(generic_sae("pca").folded(2.5), tmp_path / "sae")
    arguments = ["export", str(tmp_path / "sae"), "--output", str(tmp_path / "out"), "--format"]
    for name in {*export_formats()} - {"plmsae"}:
        assert cli.main([*arguments, name]) == 2
        assert f"'pca' cannot be written as {name}" in capsys.readouterr().err
    assert cli.main([*arguments, "sae_lens"]) == 2
    assert "did you mean 'saelens'?" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "none"), "--format", "saelens", "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_an_sae_of_another_library_becomes_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = generic_sae().folded(2.5).requires_grad_(False)
    export_sae(sae, tmp_path / "theirs", "dictionary_learning")
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    arguments = ["export", str(tmp_path / "theirs"), "--from", "dictionary_learning", *ORIGIN, "--json"]
    out = tmp_path / "raw"
    assert cli.main([*arguments, "--scale", "1", "--folded", "--output", str(out)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "architecture": "topk",
        "files": ["config.json", "sae.safetensors"],
        "format": "plmsae",
        "output": str(out),
    }
    loaded = load(out)
    assert torch.equal(loaded(x), sae(x))
    loaded.check_source("esm_small", "sha256:00", 4, "residual")
    assert loaded.config.training["imported"]["class"] == "AutoEncoderTopK"
    # Trained on activations divided by 4: what is written takes raw ones all the same.
    assert cli.main([*arguments, "--scale", "4", "--output", str(tmp_path / "scaled")]) == 0
    scaled = load(tmp_path / "scaled")
    assert scaled.config.normaliser == {"kind": "rms", "scale": 4.0, "folded": True}
    torch.testing.assert_close(scaled(4 * x), 4 * sae(x))
    # From one library to another.
    capsys.readouterr()
    last = [*arguments, "--scale", "1", "--folded", "--format", "sparsify", "--output", str(tmp_path / "sparsify")]
    assert cli.main(last) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["cfg.json", "sae.safetensors"]


def test_files_that_say_how_tokens_are_scaled_need_no_scale(tmp_path: Path) -> None:
    sae = generic_sae(normaliser=LAYER_NORM).requires_grad_(False)
    export_sae(sae, tmp_path / "theirs", "interprot")
    arguments = ["export", str(tmp_path / "theirs"), "--from", "interprot", *ORIGIN, "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2  # k is in no file
    assert cli.main([*arguments, "--k", "5", "--scale", "1"]) == 2
    assert cli.main([*arguments, "--k", "5"]) == 0
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load(tmp_path / "out")(x), sae(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "dictionary_learning"], "--plm, --revision, --layer, --hook missing"),
        (["--from", "dictionary_learning", *ORIGIN[:4], "--layer", "4"], "what it was trained on: --hook missing"),
        (["--from", "dictionary_learning", *ORIGIN], "how the activations were scaled"),
        (["--from", "dictionary_learning", *ORIGIN, "--folded"], "--folded without --scale"),
        (["--from", "dictionary_learning", *ORIGIN, "--scale", "0"], "normaliser"),
        (["--from", "dictionary_learning", *ORIGIN, "--scale", "nan"], "normaliser"),
        (["--from", "dictionary_learning", *ORIGIN, "--scale", "1", "--k", "6"], "the files say k = 5, not 6"),
        (["--from", "dictionary_learning", *ORIGIN, "--scale", "1", "--class", "AutoEncoder"], "not a 'AutoEncoder'"),
        (["--from", "dictionarylearning", *ORIGIN, "--scale", "1"], "did you mean 'dictionary_learning'?"),
        (["--from", "plmsae", *ORIGIN, "--scale", "1"], "unknown SAE format 'plmsae'"),
        (["--format", "saelens", "--plm", "p", "--k", "3"], "--plm, --k: only for --from"),
        ([], "the format to write is not given"),
    ],
)
def test_what_an_import_lacks_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_sae(generic_sae().folded(2.5), tmp_path / "theirs", "dictionary_learning")
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "theirs"), *arguments, "--output", str(out), "--json"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert json.loads(captured.out)["fix"]
    assert not out.exists()


def test_a_file_that_is_damaged_is_invalid_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_sae(generic_sae().folded(2.5), tmp_path / "theirs", "dictionary_learning")
    (tmp_path / "theirs" / "ae.pt").write_bytes(b"PK")
    arguments = ["--from", "dictionary_learning", *ORIGIN, "--scale", "1", "--output", str(tmp_path / "out")]
    assert cli.main(["export", str(tmp_path / "theirs"), *arguments]) == 3
    assert "damaged" in capsys.readouterr().err


def test_an_imported_sae_that_scales_every_token_reads_a_protein(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plm = load_plm("esm_small")
    origin = {"plm": plm.name, "plm_revision": plm.revision, "layer": 3, "hook": "residual"}
    sae = generic_sae(d_model=plm.d_model, dictionary_size=200, normaliser=LAYER_NORM, **origin).requires_grad_(False)
    export_sae(sae, tmp_path / "theirs", "interprot")
    told = ["--plm", plm.name, "--revision", plm.revision, "--layer", "3", "--hook", "residual", "--k", "5"]
    source = ["export", str(tmp_path / "theirs"), "--from", "interprot"]
    assert cli.main([*source, *told, "--output", str(tmp_path / "sae")]) == 0
    capsys.readouterr()
    assert cli.main(["features", "MKTAYIAKQR", "--model", str(tmp_path / "sae"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    z = sae.encode(plm.hidden(plm.tokenize(["MKTAYIAKQR"]), 3, "residual"))
    assert len(rows) == int((z > 0).sum())
    for row in rows:
        assert row["activation"] == pytest.approx(float(z[row["position"] - 1, row["latent"]]), rel=1e-4)
    # Told another layer, it is not for this one.
    told[5] = "4"
    assert cli.main([*source, *told, "--output", str(tmp_path / "other")]) == 0
    with pytest.raises(UserError, match="trained on layer 4; the activations are of layer 3"):
        load(tmp_path / "other").check_source(plm.name, plm.revision, 3, "residual")
