"""The package, the card and the report: deterministic, complete, self-contained, and true to the evidence."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest

from plmsae.artifacts.manifest import verify
from plmsae.errors import DataError
from plmsae.registry.card import model_card
from plmsae.registry.evidence import Evidence
from plmsae.registry.package import write_package
from plmsae.registry.report import write_report
from plmsae.saes.config import SaeConfig
from plmsae.saes.files import read_config
from tests.registry.outputs import PNG, write_outputs

NAME = "plmsae.esm_small.layer3.topk"


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    return write_outputs(tmp_path)


@pytest.fixture
def config(evidence: Evidence) -> SaeConfig:
    return read_config(evidence.sae_folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_package_is_complete_and_its_bytes_depend_on_the_evidence_alone(
    evidence: Evidence, config: SaeConfig, tmp_path: Path
) -> None:
    write_package(tmp_path / "a", evidence, config, NAME)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_package(tmp_path / "b", write_outputs(elsewhere), config, NAME)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {
        "sae.safetensors",
        "config.json",
        "MODEL_CARD.md",
        "lineage.json",
        "metrics.json",
        "latents.parquet",
        "concepts.csv",
        "manifest.json",
    }
    manifest = verify(tmp_path / "a")
    assert set(manifest.inputs) == {
        "sequences",
        "activations",
        "sae",
        "fidelity",
        "concepts",
        "baselines",
        "amortisation",
    }
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == evidence.metrics()


def test_the_card_says_what_a_user_must_know(evidence: Evidence, config: SaeConfig) -> None:
    card = model_card(evidence, config, NAME, "Trained for a **talk**.")
    for text in (
        f"# {NAME}",
        "Trained for a **talk**.",
        "| PLM | esm_small |",
        config.plm_revision,
        "| layer | 3 |",
        "raw activations (the normaliser is folded",
        "| licence | CC BY 4.0 |",
        "| release | 2025_04 |",
        "| ingest.seed | 0 |",
        "| tokens | 1000 |",
        "91.2 % [90.0, 92.5]",
        "| Zinc finger <C2H2> | 5 | 0.920 [0.910, 0.930] | 0.550 | 0.300 |",
        "| Never found | none |",
        "has seen Swiss-Prot",
        "## Dual use",
        f'plmsae.load("models:/{NAME}@champion")',
        "**fidelity.** What evaluate@fidelity found & wrote.",
        "**baselines.** What evaluate@baselines found & wrote.\n\n| what | SAE | PCA |",
        "| amortisation \\| measured | 0.5 | none |",
    ):
        assert text in card, text
    assert card.count("\n# ") == 0


def test_the_card_s_snippet_runs(
    evidence: Evidence, config: SaeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_package(tmp_path / "package", evidence, config, NAME)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "package" / "MODEL_CARD.md").read_text(), re.DOTALL)
    assert code is not None
    script = code[1].replace(f"models:/{NAME}@champion", str(tmp_path / "package"))
    namespace: dict[str, object] = {}
    exec(compile(script, "card", "exec"), namespace)
    assert "accession" in capsys.readouterr().out


class _Page(html.parser.HTMLParser):
    VOID = frozenset({"meta", "img", "br", "link", "input", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_whole_page_that_needs_nothing_else(
    evidence: Evidence, config: SaeConfig, tmp_path: Path
) -> None:
    write_report(tmp_path / "report.html", evidence, config, NAME, num_concepts=2)
    text = (tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    sections = [link for link in page.links if link.startswith("#")]
    assert sections
    assert all(f'id="{link[1:]}"' in text for link in sections)
    images = [link for link in page.links if link not in sections]
    assert len(images) == 2
    assert all(link.startswith("data:image/png;base64,") for link in images)
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", text)
    assert "viewport" in text
    assert "prefers-color-scheme:dark" in text
    for expected in (
        NAME,
        "91.2 %[90.0, 92.5]masked loss recovered",
        "Zinc finger <C2H2>",  # escaped in the source, whole for the reader
        "0.920 [0.910, 0.930]",
        "91.2 [90.0, 92.5]",
        config.plm_revision,
        evidence.sha256(),
        "plmsae.load(",
        "CC BY 4.0",
        "What evaluate@concepts found & wrote.",
        "baselines | measured0.5none",
    ):
        assert expected in page.text, expected
    assert "Zinc finger <C2H2>" not in text
    assert "Never found" not in page.text  # the third of two


def test_the_report_of_a_causal_model_has_its_protocol_alone(
    evidence: Evidence, config: SaeConfig, tmp_path: Path
) -> None:
    (evidence.folders["fidelity"] / "fidelity.csv").write_text(
        "protocol,per,quantity,value,low,high\ncausal,token,ce_clean,2.25,2.2,2.3\ncausal,token,kl_ratio,1.5,1.4,1.6\n"
        "unmasked,token,fvu,0.1,0.09,0.11\n"
    )
    write_report(tmp_path / "report.html", evidence, config, NAME, num_concepts=2)
    page = _Page()
    page.feed((tmp_path / "report.html").read_text())
    text = page.text.replace("\n", "")
    assert "per residue, test proteinsnext residuescross-entropy, untouched (nats)2.250 [2.200, 2.300]" in text
    assert "1.50 [1.40, 1.60]" in page.text
    assert "unmasked residues" not in page.text


def test_the_report_has_equal_bytes_for_equal_evidence(evidence: Evidence, config: SaeConfig, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_report(tmp_path / "a.html", evidence, config, NAME, 30)
    write_report(tmp_path / "b.html", write_outputs(elsewhere), config, NAME, 30)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_without_concepts_the_card_and_the_report_say_so(evidence: Evidence, config: SaeConfig, tmp_path: Path) -> None:
    (evidence.folders["concepts"] / "concepts.csv").write_text("concept,method\n")
    assert "No concept was frequent enough" in model_card(evidence, config, NAME)
    write_report(tmp_path / "report.html", evidence, config, NAME, 30)
    assert "best neuron" not in (tmp_path / "report.html").read_text()


def test_a_damaged_table_is_named(evidence: Evidence, config: SaeConfig) -> None:
    (evidence.folders["concepts"] / "concepts.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="table of concepts"):
        model_card(evidence, config, NAME)
    (evidence.folders["sequences"] / "source.json").write_text("[1]")
    with pytest.raises(DataError, match=r"source\.json"):
        evidence.source()


def test_evaluations_are_comparable_exactly_when_data_and_settings_agree(tmp_path: Path) -> None:
    def key(name: str, **changes: object) -> str:
        (tmp_path / name).mkdir()
        return write_outputs(tmp_path / name, **changes).evaluation_sha256()  # type: ignore[arg-type]

    assert key("a") == key("b", seed=5, fidelity={"fvu": 0.9})
    assert key("c") != key("d", data="other proteins")


def test_the_figures_are_embedded_unchanged(evidence: Evidence, config: SaeConfig, tmp_path: Path) -> None:
    import base64

    write_report(tmp_path / "report.html", evidence, config, NAME, 30)
    assert base64.b64encode(PNG).decode() in (tmp_path / "report.html").read_text()
