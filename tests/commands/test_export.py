"""`plmsae export` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch

from plmsae import cli
from plmsae.saes import save
from plmsae.saes.formats import export_formats, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import TOLD


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
    for name in export_formats():
        assert cli.main([*arguments, name]) == 2
        assert f"'pca' cannot be written as {name}" in capsys.readouterr().err
    assert cli.main([*arguments, "sae_lens"]) == 2
    assert "did you mean 'saelens'?" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "none"), "--format", "saelens", "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
