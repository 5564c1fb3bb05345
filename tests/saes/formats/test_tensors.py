"""Files that must not be loaded, whatever the format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats import export_formats, export_sae, import_formats, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import LAYER_NORM, TOLD


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
    for text in ("[" * 100_000, "[1]"):
        (tmp_path / "cfg.json").write_text(text)
        with pytest.raises(DataError, match=r"not valid JSON|not a JSON mapping"):
            import_sae(tmp_path, "sparsify", **TOLD)
    (tmp_path / "cfg.json").write_text('{"k": 5, "d_in": 12}')
    with pytest.raises(DataError, match="damaged"):
        import_sae(tmp_path, "sparsify", **TOLD)


def test_unknown_formats_get_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'saelens'"):
        import_sae(tmp_path, "sae_lens", **TOLD)
    with pytest.raises(UserError, match="unknown SAE format 'reticular'"):
        export_sae(generic_sae(), tmp_path / "a", "reticular")
    with pytest.raises(UserError, match="unknown SAE format 'plmsae'"):
        import_sae(tmp_path, "plmsae", **TOLD)
    assert set(export_formats()) - set(import_formats()) == {"plmsae"}
    assert set(import_formats()) - set(export_formats()) == {"reticular"}


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


BOTH_WAYS = sorted({*export_formats()} & {*import_formats()})
SCALES_TOKENS = ("biohub", "interprot", "openai")


def exportable(format: str) -> SparseAutoencoder:
    if format not in SCALES_TOKENS:
        return generic_sae().folded(2.5)
    sae = generic_sae(normaliser=LAYER_NORM)
    sae.b_enc.data.zero_()  # biohub has none
    return sae


def told_of(format: str) -> dict[str, Any]:
    told = {**TOLD, "layer": 4}
    if format == "interplm":
        return {**told, "dictionary_class": "TopKSAE"}
    return {**told, "normaliser": None, "k": 5} if format in SCALES_TOKENS else told


@pytest.mark.parametrize("format", BOTH_WAYS)
def test_an_origin_that_is_not_valid_is_refused(format: str, tmp_path: Path) -> None:
    export_sae(exportable(format), tmp_path / "out", format)
    told = told_of(format)
    import_sae(tmp_path / "out", format, **told)
    for change in ({"plm": ""}, {"plm_revision": ""}, {"layer": -1}, {"hook": ""}, {"k": 7},
                   {"normaliser": {"kind": "rms", "scale": 0.0, "folded": True}}):  # fmt: skip
        if (format, change) == ("interprot", {"k": 7}):
            continue  # its files do not say k
        with pytest.raises(UserError):
            import_sae(tmp_path / "out", format, **{**told, **change})
    if format not in ("saelens", *SCALES_TOKENS):
        with pytest.raises(UserError, match="how the activations were scaled") as error:
            import_sae(tmp_path / "out", format, **{**told, "normaliser": None})
        assert "--scale 1 --folded" in str(error.value.fix)


@pytest.mark.parametrize("format", BOTH_WAYS)
def test_weights_that_are_not_those_of_an_sae_are_named(format: str, tmp_path: Path) -> None:
    """Extra, missing, wrong-shaped, non-finite and non-float tensors, whatever the library."""
    export_sae(exportable(format), tmp_path / "out", format)
    told = told_of(format)
    path = next(item for item in sorted((tmp_path / "out").iterdir()) if item.suffix in (".pt", ".safetensors"))
    good = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    matrix = next(name for name in good if name in ("encoder.weight", "W_enc", "w_enc"))
    broken: list[tuple[dict[str, Any], str]] = [
        ({"stranger": torch.zeros(2)}, "unknown tensor 'stranger'"),
        ({matrix: None}, f"tensor '{matrix}' is missing"),
        ({matrix: torch.zeros(3, 4, 5)}, rf"tensor '{matrix}' has shape \(3, 4, 5\)"),
        ({matrix: good[matrix].t().contiguous()}, "has shape"),
        ({matrix: torch.full_like(good[matrix], torch.nan)}, f"tensor '{matrix}' holds 480 NaN or infinite values"),
        ({matrix: torch.full_like(good[matrix], -torch.inf)}, "holds 480 NaN or infinite values"),
        ({matrix: torch.ones(good[matrix].shape, dtype=torch.int64)}, r"tensor 'W_enc' is torch\.int64"),
        ({matrix: torch.zeros(0, 0)}, r"has shape \(0, 0\)"),
    ]
    for change, message in broken:
        state = {name: value for name, value in {**good, **change}.items() if value is not None}
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        with pytest.raises(DataError, match=message) as error:
            import_sae(tmp_path / "out", format, **told)
        assert str(path.name) in str(error.value.where)
        assert error.value.fix


@pytest.mark.parametrize("format", ["dictionary_learning", "interplm", "openai", "interprot"])
def test_no_format_runs_what_a_pt_holds(format: str, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    (tmp_path / "in").mkdir()
    torch.save({"b_dec": torch.zeros(3), "payload": Payload(mark)}, tmp_path / "in" / "ae.pt")
    with pytest.raises(DataError, match="could run code"):
        import_sae(tmp_path / "in", format, **{**told_of(format), "dictionary_class": "AutoEncoder"})
    assert not mark.exists()
