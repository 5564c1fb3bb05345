"""What a re-evaluation would run now, what has changed under each evaluation, and running what is stale.

Nothing is run to find out what is stale. Then the same stages are executed as in the pipeline; an output of the
pipeline that is exactly what a stage would make is read in place of making it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256, read_manifest, verify
from plmsae.params import Params, canonical_json
from plmsae.stages import catalog
from plmsae.stages.execute import code_sha256, execute, raw_files
from plmsae.stages.reevaluation_inputs import at_the_sae, parameters_of, revision_of, sae_folder
from plmsae.stages.reevaluation_params import NEWEST, RECORDED, ReevaluateParams, Tolerances
from plmsae.stages.spec import Stage

if TYPE_CHECKING:
    from plmsae.registry.basis import Basis
    from plmsae.registry.drift import Better
    from plmsae.registry.reevaluation import Measured, Version

logger = logging.getLogger("plmsae")
_REVISION = "plm_revision"


@dataclass(frozen=True)
class Made:
    """A stage with its parameters, and what it was or would be made of."""

    stage: Stage
    params: Params
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What every stage would be run with now."""

    version: Version
    settings: ReevaluateParams
    root: Path
    state: Path
    revision: str
    ingest: Made
    validation: Made
    extraction: Made
    evaluations: Mapping[str, Made]

    @classmethod
    def make(cls, version: Version, settings: ReevaluateParams, root: Path, state: Path) -> Plan:
        """Find the newest data and weights; runs no stage."""
        tags = version.registered.tags
        revision = tags[_REVISION]
        if settings.plm_revision != RECORDED:
            wanted = None if settings.plm_revision == NEWEST else settings.plm_revision
            revision = revision_of(tags["plm"], wanted, root)

        def made(stage_id: str, params: Params | None = None) -> Made:
            stage = catalog.stage(stage_id)
            params = parameters_of(settings, stage) if params is None else params
            return Made(stage, params, raw_files(stage, params, root, state)[1])

        extraction = at_the_sae(parameters_of(settings, catalog.stage("extract_activations")), tags, revision)
        return cls(
            version,
            settings,
            root,
            state,
            revision,
            made("ingest"),
            made("validate"),
            made("extract_activations", extraction),
            {name: made(f"evaluate@{name}") for name in settings.evaluations},
        )

    def basis(self, evaluation: str) -> Basis:
        """What an evaluation would rest on now."""
        from plmsae.registry.basis import Basis, parameters

        made = (self.ingest, self.extraction, self.evaluations[evaluation])
        sections = {each.stage.id: json.loads(canonical_json(each.params)) for each in made}
        return Basis(
            data={f"{each.stage.id}.{name}": sha for each in made for name, sha in each.sources.items()},
            plm=f"{self.version.registered.tags['plm']}@{self.revision}",
            sae=self.version.stages["sae"]["manifest_sha256"],
            code={each.stage.id: code_sha256(each.stage) for each in made},
            parameters=parameters(sections, _raw_parameters(made)),
        )

    def causes(self, evaluation: str) -> dict[str, list[str]]:
        """Why an evaluation is stale: cause -> what changed; empty if it is not."""
        from plmsae.registry.basis import changes, recorded

        tags = self.version.registered.tags
        made = (self.ingest, self.extraction, self.evaluations[evaluation])
        before = self.version.basis(evaluation) or recorded(
            self.version.stages, evaluation, f"{tags['plm']}@{tags[_REVISION]}", _raw_parameters(made)
        )
        return changes(before, self.basis(evaluation))

    def run(self, causes: Mapping[str, dict[str, list[str]]], work: Path) -> tuple[dict[str, Measured], dict[str, str]]:
        """Evaluate; returns evaluation -> what was found, and the facts for the record."""
        from plmsae.registry.drift import Settings, Side, compare
        from plmsae.registry.gates import measured as name_here
        from plmsae.registry.json_files import read_json
        from plmsae.registry.load import pull
        from plmsae.registry.origin import run_tags
        from plmsae.registry.reevaluation import Measured

        registered = self.version.registered
        package = work / "package"
        if not (package / MANIFEST_NAME).is_file():
            pull(registered.uri, package, root=self.root)
        sae = sae_folder(package, work / "train_sae", self.revision)
        sequences = self._output(self.ingest, {}, work)
        validation = self._output(self.validation, {"sequences": sequences}, work)
        activations = self._output(self.extraction, {"sequences": sequences, "validation": validation}, work)
        inputs = {"sequences": sequences, "activations": activations, "sae": sae}
        how = Settings(
            self.settings.min_pairs, self.settings.num_resamples, self.settings.confidence, self.settings.seed
        )
        tolerances: tuple[tuple[Better, Tolerances], ...] = (
            ("more", self.settings.more_is_better),
            ("less", self.settings.less_is_better),
        )
        found: dict[str, Measured] = {}
        for name, why in causes.items():
            folder = self._output(self.evaluations[name], inputs, work)
            metrics = {key: float(value) for key, value in read_json(folder / "metrics.json").items()}
            start = f"{name}."
            before = Side(
                package,
                {key.removeprefix(start): value for key, value in registered.metrics.items() if key.startswith(start)},
            )
            after = Side(folder, metrics)
            here = {f"{start}{key}": value for key, value in metrics.items()}
            drift = tuple(
                compare(
                    name, name_here(f"{start}{metric}", here).removeprefix(start), better, limit, before, after, how
                )
                for better, suite in tolerances
                for metric, limit in suite.get(name, {}).items()
            )
            found[name] = Measured(self.basis(name), why, metrics, drift)
        source = read_json(sequences / "source.json")
        facts = {
            "data_source": str(source.get("source", "")),
            "data_release": str(source.get("release", "")),
            "data_sha256": str(source.get("sha256", "")),
            "plm": registered.tags["plm"],
            _REVISION: self.revision,
            **run_tags(self.root),
        }
        return found, facts

    def _output(self, made: Made, inputs: Mapping[str, Path], work: Path) -> Path:
        """The output of a stage: the pipeline's or that of a run which was cut off, if it is the same, or a new one."""
        own = work / Path(*made.stage.id.split("@"))
        for folder in (self.root / made.stage.output, own):
            if self._is_current(made, inputs, folder):
                logger.info("%s is read from %s", made.stage.id, folder)
                return folder
        execute(made.stage, made.params, root=self.root, inputs=inputs, output=own, state=self.state)
        return own

    def _is_current(self, made: Made, inputs: Mapping[str, Path], folder: Path) -> bool:
        if not (folder / MANIFEST_NAME).is_file():
            return False
        manifest = read_manifest(folder)
        params = json.loads(canonical_json(made.params))
        extraction = made.stage.id == self.extraction.stage.id
        if extraction and _REVISION in manifest.params:
            params[_REVISION] = manifest.params[_REVISION]  # a branch or none; the store says which weights it was
        same = (
            manifest.stage == made.stage.id
            and manifest.params == params
            and manifest.inputs == {port: manifest_sha256(path) for port, path in inputs.items()}
            and manifest.source_files == dict(made.sources)
            and manifest.environment.get("code_sha256") == code_sha256(made.stage)
        )
        if not same or (extraction and self._stored_revision(folder) != self.revision):
            return False
        verify(folder)
        return True

    def _stored_revision(self, folder: Path) -> str:
        from plmsae.activations.metadata import read_metadata
        from plmsae.activations.places import store_at

        tags = self.version.registered.tags
        return read_metadata(store_at(folder, int(tags["layer"]), tags["hook"])).plm_revision


def _raw_parameters(made: Sequence[Made]) -> dict[str, tuple[str, ...]]:
    return {each.stage.id: (*each.stage.source_files, *each.stage.optional_files) for each in made}
