"""What a stage is: one declaration from which DVC, Kubeflow, the command line and the schema are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plmsae.artifacts.manifest import Manifest
from plmsae.params import Params

Kind = Literal["sequences", "report", "activations", "sae", "result", "registration", "promotion"]
Retry = Literal["none", "io", "gpu"]
ValueType = str | int | list[Any]
# `registered`: tasks of pipelines that start from a registered SAE; in no graph of DVC, which cannot watch a registry.
# `pairs`: tasks around the sweeps of a Kubeflow pipeline, one for each pair of a layer and an architecture.
Pipeline = Literal["train", "sweep", "evaluate", "registered", "pairs"]


@dataclass(frozen=True)
class Input:
    """An input port.

    Attributes:
        name: Name of the port, e.g. `activations`.
        kind: The artifact type that it takes.
        source: Id of the stage whose output it reads by default.
        optional: True if a Kubeflow pipeline may leave it out. On a laptop `--without PORT` says so.
    """

    name: str
    kind: Kind
    source: str
    optional: bool = False


@dataclass(frozen=True)
class Value:
    """An output parameter: a value that a pipeline hands to other tasks, beside the artifact.

    Attributes:
        name: Its name.
        kind: `str`, `int`, or `list` of what JSON has.
        meaning: What it is, for the component's documentation.
    """

    name: str
    kind: type[str] | type[int] | type[list[Any]]
    meaning: str


def value_text(value: ValueType) -> str:
    """An output parameter as engines hand it on: a list is JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Resources:
    """What a task asks of a cluster: CPU cores, memory in GiB, GPUs, how it is retried, and its time limit."""

    cpu: int = 2
    memory_gib: int = 8
    gpu: int = 0
    retry: Retry = "io"
    timeout_hours: int = 4


@dataclass(frozen=True)
class Plot:
    """A table that `dvc plots` draws: CSV file in the output, x column, y columns, and a title."""

    file: str
    x: str
    y: tuple[str, ...]
    title: str


@dataclass(frozen=True)
class StageContext:
    """What the work function of a stage gets.

    Attributes:
        params: The stage's resolved parameters.
        inputs: Input port -> verified folder.
        manifests: Input port -> its manifest.
        output: Empty folder to write into; it becomes the stage's output only when the function returns.
        checkpoints: Folder that survives a kill and is met again only with equal parameters, inputs and code.
        sources: Parameter that names a raw input file -> that file on this disk, its checksum verified; an optional
            one is absent if it is null.
        root: The working folder; paths in parameters are relative to it.
        nodes: Starts processes on other machines, a `plmsae.training.nodes.Nodes`; None where there are none.
    """

    params: Any
    inputs: Mapping[str, Path]
    manifests: Mapping[str, Manifest]
    output: Path
    checkpoints: Path
    sources: Mapping[str, Path]
    root: Path
    nodes: Any = None


@dataclass(frozen=True)
class ChildRun:
    """One of several runs that a stage consists of, tracked below the stage's own.

    Attributes:
        params: Its parameters.
        metrics: Its metrics; none if it failed.
        folder: Its folder in the stage's output, for curves, figures and the summary; None if it has none.
        failed: Why it failed; None if it did not.
    """

    params: Mapping[str, Any]
    metrics: Mapping[str, float | int]
    folder: str | None
    failed: str | None = None


@dataclass(frozen=True)
class StageResult:
    """What a work function returns.

    Attributes:
        metrics: Flat snake_case name -> number; written to `metrics.json`. NaN and infinity are refused.
        summary: One paragraph of Markdown for people; written to `summary.md`.
        children: Name -> run that is tracked below the stage's.
        values: Output parameter -> value, of those that the stage declares; also metadata of the output in Kubeflow.
    """

    metrics: Mapping[str, float | int]
    summary: str
    children: Mapping[str, ChildRun] = field(default_factory=dict)
    values: Mapping[str, ValueType] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """The declaration of a stage.

    Attributes:
        id: `name`, or `name@entry` for an entry of a suite (`evaluate@fidelity`); the DVC stage and KFP task.
        summary: One line for `--help`, the reference page and the component.
        params: The parameter model of its section.
        inputs: Input ports.
        inherits: Sections of other stages whose values fill in what its parameter of the same name leaves out.
        decides: Dotted parameters of those sections that it finds out by itself: not filled in, and refused by a
            pipeline where somebody sets them.
        shares: Section that it has with other stages, that of the stage of this id; by default it has its own.
        repeats: Stages that it runs itself: `stages` among its parameters holds the sections of all of them, filled in
            from theirs.
        pipeline: `train` for the graph of `dvc repro`; a stage of another pipeline runs when that one is asked for.
        kind: The artifact type of its one output folder.
        run: Dotted path `module:function` of the work function, imported only when the stage runs.
        code: Rooms and modules under `src/plmsae` that its numbers depend on (a test compares them to the imports).
        resources: What it asks of a cluster.
        source_files: Names of parameters that hold the path of a raw input file; `<name>_sha256` pins its bytes.
        optional_files: Names of parameters (dotted within an inherited section) that may name a raw file or folder, or
            are null. Their `<name>_sha256` must be given with them: DVC cannot watch what may not be there.
        knobs: Parameters that people change from run to run: typed fields of the Kubeflow form (the others are one
            JSON text per stage).
        wired: Knobs that a pipeline connects to what other stages have or get: no arguments of a run by themselves.
        replaces: Knobs of other stages of a pipeline that it gives a value: no arguments of a run either.
        values: Output parameters of its task.
        report: HTML file in its output that the Kubeflow UI shows.
        plots: Tables for `dvc plots`.
        resumable: True if it leaves checkpoints, from which a killed run goes on.
        side_effects: True for a stage that acts on the registry: never taken from a cache.
        notifies: True for a stage that tells the webhook: it gets the Secret with its address.
        looks_up: True for a stage that asks what a name points at now: never taken from a cache either.
        tracked: True if its metrics and figures are logged to MLflow as a run of their own.
    """

    id: str
    summary: str
    params: type[Params]
    kind: Kind
    run: str
    code: tuple[str, ...]
    inputs: tuple[Input, ...] = ()
    inherits: tuple[str, ...] = ()
    decides: tuple[str, ...] = ()
    shares: str | None = None
    repeats: tuple[str, ...] = ()
    pipeline: Pipeline = "train"
    resources: Resources = field(default_factory=Resources)
    source_files: tuple[str, ...] = ()
    optional_files: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ()
    wired: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    report: str | None = None
    plots: tuple[Plot, ...] = ()
    resumable: bool = False
    side_effects: bool = False
    notifies: bool = False
    looks_up: bool = False
    tracked: bool = False

    @property
    def name(self) -> str:
        """Name of the stage: its folder under `components/` and `outputs/`."""
        return self.id.partition("@")[0]

    @property
    def entry(self) -> str | None:
        """The suite entry, e.g. `fidelity` of `evaluate@fidelity`."""
        return self.id.partition("@")[2] or None

    @property
    def section(self) -> str:
        """Dotted name of its section in `params.yaml`."""
        return self.shares or self.id.replace("@", ".")

    @property
    def output(self) -> Path:
        """Its output folder, relative to the working folder."""
        return Path("outputs", *self.id.split("@"))

    def work(self) -> Callable[[StageContext], StageResult]:
        """Import and return the work function."""
        import importlib

        module, _, function = self.run.partition(":")
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
