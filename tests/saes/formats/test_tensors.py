"""Files that must not be loaded, whatever the format."""

from pathlib import Path

import pytest
import torch

from plmsae.errors import DataError, UserError
from plmsae.saes.formats import export_formats, export_sae, import_formats, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import TOLD


class Payload:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_inside_a_pt_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    torch.save({"bias": torch.zeros(3), "payload": Payload(mark)}, tmp_path / "ae.pt")
    with pytest.raises(DataError, match="could run code"):
        import_sae(tmp_path, "dictionary_learning", **TOLD, dictionary_class="AutoEncoder")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"bias": torch.zeros(3)}}, "entry 'state_dict' is a dict"),
        ([torch.zeros(3)], "a list, not a state_dict"),
    ],
)
def test_a_pt_that_is_no_state_dict_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "ae.pt")
    with pytest.raises(DataError, match=message):
        import_sae(tmp_path, "interplm", **TOLD)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        import_sae(tmp_path / "none", "interplm", **TOLD)
    with pytest.raises(DataError, match=r"ae\.pt' is missing"):
        import_sae(tmp_path, "interplm", **TOLD)
    (tmp_path / "ae.pt").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match=r"damaged|could run code"):
        import_sae(tmp_path, "interplm", **TOLD)
    (tmp_path / "cfg.json").write_text("{")
    (tmp_path / "sae.safetensors").write_bytes(b"12345678910")
    with pytest.raises(DataError, match="not valid JSON"):
        import_sae(tmp_path, "sparsify", **TOLD)
    (tmp_path / "cfg.json").write_text('{"k": 5, "d_in": 12}')
    with pytest.raises(DataError, match="damaged"):
        import_sae(tmp_path, "sparsify", **TOLD)


def test_unknown_formats_get_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'saelens'"):
        import_sae(tmp_path, "sae_lens", **TOLD)
    with pytest.raises(UserError, match="unknown SAE format 'reticular'"):
        export_sae(generic_sae(), tmp_path / "a", "reticular")
    assert set(export_formats()) < set(import_formats())


@pytest.mark.parametrize("format", ["interprot", "biohub"])
def test_formats_that_standardise_every_token_say_why_they_are_not_read(format: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it standardises every token"):
        import_sae(tmp_path, format, **TOLD)
    with pytest.raises(UserError, match="it standardises every token"):
        export_sae(generic_sae().folded(2.5), tmp_path / "out", format)


@pytest.mark.parametrize("format", export_formats())
def test_an_export_is_whole_folded_and_finite_or_refused(format: str, tmp_path: Path) -> None:
    sae = generic_sae()
    with pytest.raises(UserError, match=r"divided by 2\.5"):
        export_sae(sae, tmp_path / "out", format)
    sae = sae.folded(2.5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_sae(sae, tmp_path / "full", format)
    sae.b_dec.data[3] = torch.inf
    with pytest.raises(DataError, match="'b_dec' holds NaN or infinity"):
        export_sae(sae, tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("format", export_formats())
def test_an_origin_that_is_not_valid_is_refused(format: str, tmp_path: Path) -> None:
    export_sae(generic_sae().folded(2.5), tmp_path / "out", format)
    told = {**TOLD, "dictionary_class": "TopKSAE"} if format == "interplm" else TOLD
    for change in ({"plm": ""}, {"layer": -1}, {"normaliser": {"kind": "rms", "scale": 0.0, "folded": True}}):
        with pytest.raises(UserError):
            import_sae(tmp_path / "out", format, **{**told, **change})
    if format != "saelens":
        with pytest.raises(UserError, match="how the activations were scaled"):
            import_sae(tmp_path / "out", format, **{**told, "normaliser": None})
