"""What the pipelines consist of when Argo runs them: their stages, in the order that ports and values give.

A stage's folder is its port for the others, as for `dvc repro`. A value that one stage finds out for another, such as
the layer of a registered SAE, is a parameter of Argo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from plmsae.errors import UserError, did_you_mean
from plmsae.stages.catalog import stages, stages_of
from plmsae.stages.render import after_sweep, run_options
from plmsae.stages.spec import Pipeline, Stage

PIPELINES = ("train", "sweep", "evaluate", "steer", "reevaluate")
_PROTEINS = ("ingest", "validate", "extract_activations")
_REGISTERED = ("resolve", "pull")
_SAE = "train_sae"


@dataclass(frozen=True)
class Given:
    """A parameter of a stage that another one finds out.

    Attributes:
        parameter: Dotted name, as for `--set`; the section alone for all parameters that are not named.
        stage: Id of the stage that finds it out.
        value: Name of its output parameter.
    """

    parameter: str
    stage: str
    value: str


@dataclass(frozen=True)
class When:
    """A condition: an output parameter is, or is not, a text.

    Attributes:
        stage: Id of the stage that has it.
        value: Its name.
        equals: The operator and the text, for Argo's `when`.
    """

    stage: str
    value: str
    equals: str


@dataclass(frozen=True)
class Graph:
    """A pipeline.

    Attributes:
        stages: Stage id -> stage.
        folders: Whose folders it uses: those of a pipeline of DVC (`plmsae.stages.render.run_options`), or of
            `registered`, where the SAE is the one that was pulled.
        sae: Id of the stage that has the SAE.
        given: Stage id -> its parameters that other stages find out.
        when: Stage id -> the condition without which it is left out; what comes after it runs all the same.
        after: Stage id -> stages that come before it although it reads none of their outputs.
    """

    stages: Mapping[str, Stage]
    folders: Pipeline
    sae: str = _SAE
    given: Mapping[str, tuple[Given, ...]] = field(default_factory=dict)
    when: Mapping[str, When] = field(default_factory=dict)
    after: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def options(self, stage: Stage) -> list[str]:
        """What `plmsae run STAGE` is told of its inputs and its output."""
        found = run_options(stage, self.folders)
        for port in stage.inputs:
            if self.folders == "registered" and port.source == _SAE:
                found += ["--input", f"{port.name}={self.stages[self.sae].output}"]
        return found + [item for name in self.without(stage) for item in ("--without", name)]

    def without(self, stage: Stage) -> list[str]:
        """Optional ports of a stage that nothing in here makes."""
        return [port.name for port in stage.inputs if port.optional and self._source(port.source) not in self.stages]

    def before(self, stage: Stage) -> list[Stage]:
        """The stages that must have finished."""
        left_out = self.without(stage)
        names = [self._source(port.source) for port in stage.inputs if port.name not in left_out]
        names += [item.stage for item in self.given.get(stage.id, ())]
        names += [self.when[stage.id].stage] if stage.id in self.when else []
        names += self.after.get(stage.id, ())
        return [self.stages[name] for name in dict.fromkeys(names)]

    def values(self, stage: Stage) -> list[str]:
        """Names of the output parameters of a stage that others take."""
        taken = {(item.stage, item.value) for items in self.given.values() for item in items}
        taken |= {(item.stage, item.value) for item in self.when.values()}
        return [value.name for value in stage.values if (stage.id, value.name) in taken]

    def knobs(self, stage: Stage) -> list[str]:
        """Knobs of a stage that are arguments of a run."""
        given = {item.parameter for item in self.given.get(stage.id, ())}
        return [name for name in stage.knobs if not given & {stage.section, f"{stage.section}.{name}"}]

    def _source(self, stage_id: str) -> str:
        return self.sae if stage_id == _SAE else stage_id


def graph(pipeline: str) -> Graph:
    """A pipeline by its name.

    Raises:
        UserError: There is none of that name.
    """
    known = stages()
    if pipeline == "train":
        return Graph(stages_of("train"), "train")
    if pipeline == "sweep":
        chosen = [*(known[name] for name in (*_PROTEINS, "sweep")), *after_sweep()]
        return Graph({stage.id: stage for stage in chosen}, "sweep", sae="sweep")
    if pipeline == "evaluate":
        # Those that train SAEs need to know how this one was trained, which no registered package says.
        evaluations = [
            name for name, stage in known.items() if stage.name == "evaluate" and "training" not in stage.code
        ]
        return _registered((*_REGISTERED, *_PROTEINS, *evaluations, "report"))
    if pipeline == "steer":
        return _registered((*_REGISTERED, "ingest", "steer", "report"))
    if pipeline == "reevaluate":
        uri = Given("reevaluate.model", "changes", "uri")  # what an alias points at may move meanwhile
        return Graph(
            {name: known[name] for name in ("changes", "reevaluate", "verdict")},
            "registered",
            given={"reevaluate": (uri,), "verdict": (uri,)},
            when={
                "reevaluate": When("changes", "action", "== evaluate"),
                "verdict": When("changes", "action", "!= nothing"),
            },
            after={"verdict": ("reevaluate",)},
        )
    raise UserError(f"no Argo manifest of '{pipeline}'", fix=did_you_mean(pipeline, PIPELINES))


def _registered(stage_ids: tuple[str, ...]) -> Graph:
    """A pipeline that starts from a registered SAE: what `resolve` finds out is what the others get."""
    known = stages()
    given = {
        "pull": (Given("pull.uri", "resolve", "uri"), Given("pull.package_sha256", "resolve", "package_sha256")),
        "extract_activations": (
            Given("extract_activations", "resolve", "extract_activations_params"),
            *(Given(f"extract_activations.{name}", "resolve", name) for name in ("plm", "layer", "store", "seed")),
        ),
    }
    return Graph(
        {name: known[name] for name in stage_ids},
        "registered",
        sae="pull",
        given={name: items for name, items in given.items() if name in stage_ids},
    )
