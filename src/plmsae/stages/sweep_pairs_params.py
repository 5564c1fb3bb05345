"""Layers and architectures of a Kubeflow sweep: a sweep of its own for every pair of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator, model_validator

from plmsae.errors import UserError
from plmsae.params import Params, validate
from plmsae.stages.sweep import SweepParams
from plmsae.training.grid import takes
from plmsae.training.parameters import TrainSaeParams

_ARCHITECTURE = "architecture"


@dataclass(frozen=True)
class Pair:
    """A layer and an architecture.

    Attributes:
        layer: The layer.
        architectures: Architectures of the members of its sweep: one, unless the grid varies them.
        sweep: Parameters of its sweep.
    """

    layer: int
    architectures: tuple[str, ...]
    sweep: SweepParams


class SweepPairsParams(Params):
    """Parameters of `sweep_pairs`."""

    layers: list[int] = Field([], description="Layers, each 0 or more; empty takes that of extract_activations.")
    architectures: list[str] = Field([], description="Architectures; empty takes that of train_sae.")
    grid: dict[str, list[Any]] | None = Field(
        None, description="Grid of every pair, without what its architecture does not take; null takes that of sweep."
    )
    extract_activations: dict[str, Any] = Field(
        {}, description="Parameters of the activations that are to differ from the section extract_activations."
    )
    sweep: dict[str, Any] = Field({}, description="Parameters of the sweeps that are to differ from the section sweep.")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        extraction, sweep = data.get("extract_activations"), data.get("sweep")
        found = dict(data)
        if isinstance(extraction, Mapping) and "layer" in extraction:
            found["layers"] = found.get("layers") or [extraction["layer"]]
        if isinstance(sweep, Mapping):
            training = sweep.get("train_sae")
            if isinstance(training, Mapping) and _ARCHITECTURE in training:
                found["architectures"] = found.get("architectures") or [training[_ARCHITECTURE]]
            if "grid" in sweep and found.get("grid") is None:
                found["grid"] = sweep["grid"]
        return found

    @field_validator("layers", "architectures")
    @classmethod
    def _once(cls, value: list[Any]) -> list[Any]:
        for item in value:
            if value.count(item) > 1:
                raise ValueError(f"{item} stands twice")
            if isinstance(item, int) and item < 0:
                raise ValueError(f"there is no layer {item}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> SweepPairsParams:
        # The sections of other stages fill in what a file leaves out; only with them can the pairs be judged.
        if self.sweep.get("train_sae", {}).keys() == TrainSaeParams.model_fields.keys():
            try:
                self.pairs()
            except UserError as error:
                raise ValueError(f"{error.problem}; {error.fix}") from error
        return self

    def pairs(self) -> list[Pair]:
        """Every layer with every architecture, the architectures varying fastest.

        Raises:
            UserError: No layer or architecture, a grid that does not fit, or members that are not valid.
        """
        if not (self.layers and self.architectures and self.grid):
            raise UserError(
                "a sweep needs layers, architectures and a grid",
                where="sweep_pairs",
                fix="give layers: [3], architectures: [topk]",
            )
        if _ARCHITECTURE in self.grid and len(self.architectures) > 1:
            raise UserError(
                "the grid varies the architecture within a sweep, and architectures asks for a sweep of each",
                where="sweep_pairs.architectures",
                fix="take architecture out of the grid",
            )
        for name in self.grid:
            if name != _ARCHITECTURE and not any(takes(one, name) for one in self._names()):
                raise UserError(
                    f"none of {', '.join(self._names())} takes '{name}'",
                    where=f"sweep.grid.{name}",
                    fix="add an architecture that does, or leave it out",
                )
        if len(self.layers) > 1 and self.sweep.get("train_sae", {}).get("layer") is not None:
            raise UserError(
                "train_sae.layer asks for one layer, and layers for several",
                where="sweep_pairs.layers",
                fix="set train_sae.layer to null",
            )
        return [self._pair(layer, architecture) for layer in self.layers for architecture in self.architectures]

    def also(self) -> list[dict[str, Any]]:
        """The further places of the extraction, which takes the first layer: those of the file behind ours."""
        hook = self.extract_activations.get("hook", "residual")
        ours = [{"layer": layer, "hook": hook} for layer in self.layers]
        given = [{"hook": "residual", **place} for place in self.extract_activations.get("also", [])]
        return [*ours[1:], *(place for place in given if place not in ours)]

    def _names(self) -> list[str]:
        return list((self.grid or {}).get(_ARCHITECTURE, self.architectures))

    def _pair(self, layer: int, architecture: str) -> Pair:
        grid, training = dict(self.grid or {}), dict(self.sweep.get("train_sae", {}))
        names = self._names() if _ARCHITECTURE in grid else [architecture]
        if _ARCHITECTURE not in grid:
            grid = {name: values for name, values in grid.items() if takes(architecture, name)}
            # In the grid an architecture leaves out what it does not take of the section as well.
            if not grid or architecture != training.get(_ARCHITECTURE):
                grid = {_ARCHITECTURE: [architecture], **grid}
        if len(self.layers) > 1:
            training["layer"] = layer
        sweep = validate(SweepParams, {**self.sweep, "train_sae": training, "grid": grid}, section="sweep")
        return Pair(layer, tuple(names), sweep)
