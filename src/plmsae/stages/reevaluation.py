"""Re-evaluation: the evaluations of a registered version once more, as far as something under them has changed.

The alias is resolved once, to a version. What each evaluation would rest on now is compared with what its numbers rest
on (`registry.basis`), before anything is run. Stale evaluations run through the same stages as in the pipeline, on the
newest data; an output of the pipeline that is exactly what a stage would make is read in place of making it again. The
outcome stands on the version (`registry.reevaluation`); no alias is touched.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.artifacts.lock import alone
from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256, read_manifest, verify
from plmsae.errors import UserError, did_you_mean
from plmsae.params import Params, ParamsFile, canonical_json
from plmsae.stages import catalog
from plmsae.stages.execute import STATE, code_sha256, execute, raw_files
from plmsae.stages.reevaluation_inputs import at_the_sae, sae_folder
from plmsae.stages.reevaluation_params import NEWEST, RECORDED, REEVALUATE, ReevaluateParams, Tolerances
from plmsae.stages.spec import Stage

if TYPE_CHECKING:
    from plmsae.registry.basis import Basis
    from plmsae.registry.drift import Better, Drift
    from plmsae.registry.reevaluation import Measured, Version

logger = logging.getLogger("plmsae")
_PORTS = {"sequences", "activations", "sae"}
_REVISION = "plm_revision"
ASKED = "asked"


@dataclass(frozen=True)
class Reevaluation:
    """The outcome.

    Attributes:
        name: Registered name.
        version: Number that the alias stood for.
        verdict: `fine` or `drifted`, of all that was compared since the version was registered.
        number: Number of the newest re-evaluation on record; 0 if there is none.
        causes: Evaluation that was run -> why: cause -> what changed.
        unchanged: Evaluations that were not run.
        drift: How every metric stands.
        told: Number of the newest re-evaluation that a webhook was told of.
    """

    name: str
    version: int
    verdict: str
    number: int
    causes: Mapping[str, Mapping[str, list[str]]]
    unchanged: tuple[str, ...]
    drift: tuple[Drift, ...]
    told: int

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "name": self.name,
            "version": self.version,
            "uri": self.uri,
            "verdict": self.verdict,
            "number": self.number,
            "evaluated": sorted(self.causes),
            "causes": {evaluation: dict(causes) for evaluation, causes in self.causes.items()},
            "unchanged": list(self.unchanged),
            "drift": [each.record() for each in self.drift],
        }


@dataclass(frozen=True)
class _Made:
    """A stage with its parameters, and what it was or would be made of."""

    stage: Stage
    params: Params
    sources: Mapping[str, str]


def settings_of(file: ParamsFile) -> ReevaluateParams:
    """The section `reevaluate`, or the defaults where there is none.

    Raises:
        UserError: A wrong parameter, or an evaluation that cannot be repeated.
    """
    found = file.load(ReevaluateParams, REEVALUATE) if REEVALUATE in file.data else ReevaluateParams()
    known = {
        stage.entry: stage
        for stage in catalog.stages().values()
        if stage.name == "evaluate" and {port.name for port in stage.inputs} == _PORTS
    }
    for name in found.evaluations:
        if name not in known:
            raise UserError(
                f"there is no evaluation '{name}' of one SAE that could be repeated",
                where=file.where(f"{REEVALUATE}.evaluations"),
                fix=did_you_mean(name, [entry for entry in known if entry]),
            )
    return found


def reevaluate(uri: str, file: ParamsFile, root: Path, *, everything: bool = False) -> Reevaluation:
    """Evaluate a registered version again, as far as something has changed.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        file: Parameters of the stages and of the re-evaluation.
        root: The working folder.
        everything: Run every evaluation, also where nothing has changed.

    Raises:
        UserError: A wrong parameter, or an unknown name, alias or version.
        DataError: Damaged data, or a record that somebody edited.
        TryAgainError: The registry or another server cannot be reached, or another process re-evaluates here.
    """
    from plmsae.registry.reevaluation import NOTIFIED_TAG, drifts, open_version, verdict, write

    settings = settings_of(file)
    state = (root / STATE).resolve()
    with alone(state / "locks" / f"{REEVALUATE}.lock", "re-evaluating"):
        version = open_version(uri, root)
        _check_tolerances(settings, version.registered.metrics, file)
        plan = _Plan.make(version, file, settings, root, state)
        causes = {name: found for name in settings.evaluations if (found := plan.causes(name))}
        if everything:
            asked = {ASKED: ["everything is to be evaluated (--all)"]}
            causes = {name: causes.get(name, asked) for name in settings.evaluations}
        history = dict(version.records)
        if causes:
            work = state / REEVALUATE / f"{version.registered.name}-v{version.registered.version}"
            measured, facts = plan.run(causes, work)
            record = write(version, measured, facts, root)
            history[record["number"]] = record
            shutil.rmtree(work)
    drift = drifts(history.values())
    told = version.registered.tags.get(NOTIFIED_TAG, "")
    return Reevaluation(
        name=version.registered.name,
        version=version.registered.version,
        verdict=verdict(drift),
        number=max(history, default=0),
        causes=causes,
        unchanged=tuple(name for name in settings.evaluations if name not in causes),
        drift=tuple(drift),
        told=int(told) if told.isdecimal() else 0,
    )


def _check_tolerances(settings: ReevaluateParams, metrics: Mapping[str, float], file: ParamsFile) -> None:
    """Refuse a metric that is not there, before hours are spent on measuring the others.

    Of an evaluation that the version was registered without, there is nothing to compare with; it is measured only.
    """
    from plmsae.registry.gates import measured

    for section in ("more_is_better", "less_is_better"):
        for evaluation, suite in getattr(settings, section).items():
            known = [name for name in metrics if name.startswith(f"{evaluation}.")]
            for metric in suite if known else ():
                if measured(f"{evaluation}.{metric}", metrics) not in known:
                    names = [name.removeprefix(f"{evaluation}.") for name in known]
                    raise UserError(
                        f"the version was registered without a metric '{metric}' of '{evaluation}'",
                        where=file.where(f"{REEVALUATE}.{section}.{evaluation}.{metric}"),
                        fix=did_you_mean(metric, names),
                    )


@dataclass(frozen=True)
class _Plan:
    """What every stage would be run with now."""

    version: Version
    settings: ReevaluateParams
    root: Path
    state: Path
    revision: str
    ingest: _Made
    validation: _Made
    extraction: _Made
    evaluations: Mapping[str, _Made]

    @classmethod
    def make(cls, version: Version, file: ParamsFile, settings: ReevaluateParams, root: Path, state: Path) -> _Plan:
        """Find the newest data and weights; runs no stage."""
        tags = version.registered.tags
        revision = tags[_REVISION]
        if settings.plm_revision != RECORDED:
            from plmsae.plms import load_plm

            wanted = None if settings.plm_revision == NEWEST else settings.plm_revision
            revision = load_plm(tags["plm"], wanted, root=root).revision

        def made(stage_id: str, params: Params | None = None) -> _Made:
            stage = catalog.stage(stage_id)
            params = catalog.load_params(file, stage) if params is None else params
            return _Made(stage, params, raw_files(stage, params, root, state)[1])

        extraction = at_the_sae(catalog.load_params(file, catalog.stage("extract_activations")), tags, revision)
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

    def _output(self, made: _Made, inputs: Mapping[str, Path], work: Path) -> Path:
        """The output of a stage: the pipeline's or that of a run which was cut off, if it is the same, or a new one."""
        own = work / Path(*made.stage.id.split("@"))
        for folder in (self.root / made.stage.output, own):
            if self._is_current(made, inputs, folder):
                logger.info("%s is read from %s", made.stage.id, folder)
                return folder
        execute(made.stage, made.params, root=self.root, inputs=inputs, output=own, state=self.state)
        return own

    def _is_current(self, made: _Made, inputs: Mapping[str, Path], folder: Path) -> bool:
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


def _raw_parameters(made: Sequence[_Made]) -> dict[str, tuple[str, ...]]:
    return {each.stage.id: (*each.stage.source_files, *each.stage.optional_files) for each in made}
