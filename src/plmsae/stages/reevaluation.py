"""Re-evaluation: the evaluations of a registered version once more, as far as something under them has changed.

The alias is resolved once, to a version. What each evaluation would rest on now is compared with what its numbers rest
on (`registry.basis`), before anything is run. The outcome stands on the version (`registry.reevaluation`); no alias is
touched. `plmsae reevaluate` and the stages `changes` and `reevaluate` are thin shells around what is here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.artifacts.lock import alone
from plmsae.errors import UserError, did_you_mean
from plmsae.stages import catalog
from plmsae.stages.execute import STATE
from plmsae.stages.reevaluation_params import REEVALUATE, REPEATED, REPEATS, ReevaluateParams
from plmsae.stages.reevaluation_plan import Plan

if TYPE_CHECKING:
    from plmsae.registry.drift import Drift
    from plmsae.registry.reevaluation import Version

ASKED = "asked"
EVALUATE, DRIFTED, NOTHING = "evaluate", "drifted", "nothing"
Where = Callable[[str], str]


@dataclass(frozen=True)
class Changes:
    """What has changed under a version.

    Attributes:
        uri: The version, `models:/NAME/VERSION`.
        action: `evaluate` if something is stale; else `drifted` if the version has drifted, and `nothing` if not.
        causes: Stale evaluation -> why: cause -> what changed.
        unchanged: Evaluations that are not stale.
        drift: How every metric stands that was compared so far.
    """

    uri: str
    action: str
    causes: Mapping[str, Mapping[str, list[str]]]
    unchanged: tuple[str, ...]
    drift: tuple[Drift, ...]

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "uri": self.uri,
            "action": self.action,
            "causes": {evaluation: dict(causes) for evaluation, causes in self.causes.items()},
            "unchanged": list(self.unchanged),
            "drift": [each.record() for each in self.drift],
        }


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


def changes(uri: str | None, settings: ReevaluateParams, root: Path, state: Path, where: Where = str) -> Changes:
    """Find what is stale; runs nothing and changes nothing.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`; None takes the only champion.
        settings: The section `reevaluate`, complete.
        root: The working folder.
        state: Folder of fetched files.
        where: Dotted parameter -> where it stands, for messages.

    Raises:
        UserError: A wrong parameter, or an unknown name, alias or version.
        DataError: Damaged data, or a record that somebody edited.
        TryAgainError: The registry or another server cannot be reached.
    """
    from plmsae.registry.reevaluation import drifts, verdict

    version = _opened(uri, settings, root, where)
    causes = _stale(Plan.make(version, settings, root, state), settings)
    drift = tuple(drifts(version.records.values()))
    action = EVALUATE if causes else DRIFTED if verdict(drift) == DRIFTED else NOTHING
    unchanged = tuple(name for name in settings.evaluations if name not in causes)
    return Changes(version.registered.uri, action, causes, unchanged, drift)


def reevaluate(
    uri: str | None,
    settings: ReevaluateParams,
    root: Path,
    *,
    everything: bool = False,
    state: Path | None = None,
    where: Where = str,
) -> Reevaluation:
    """Evaluate a registered version again, as far as something has changed.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`; None takes the only champion.
        settings: The section `reevaluate`, complete.
        root: The working folder.
        everything: Run every evaluation, also where nothing has changed.
        state: Folder that survives a kill, by default `.plmsae` below `root`.
        where: Dotted parameter -> where it stands, for messages.

    Raises:
        UserError: A wrong parameter, or an unknown name, alias or version.
        DataError: Damaged data, or a record that somebody edited.
        TryAgainError: The registry or another server cannot be reached, or another process re-evaluates here.
    """
    from plmsae.registry.reevaluation import drifts, verdict, write

    state = (state or root / STATE).resolve()
    with alone(state / "locks" / f"{REEVALUATE}.lock", "re-evaluating"):
        version = _opened(uri, settings, root, where)
        plan = Plan.make(version, settings, root, state)
        causes = _stale(plan, settings)
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
    return Reevaluation(
        name=version.registered.name,
        version=version.registered.version,
        verdict=verdict(drift),
        number=max(history, default=0),
        causes=causes,
        unchanged=tuple(name for name in settings.evaluations if name not in causes),
        drift=tuple(drift),
        told=version.told,
    )


def _opened(uri: str | None, settings: ReevaluateParams, root: Path, where: Where) -> Version:
    """The version; wrong settings are refused before hours are spent."""
    from plmsae.registry.reevaluation import open_version

    _check_stages(settings, where)
    version = open_version(uri, root)
    _check_tolerances(settings, version.registered.metrics, where)
    return version


def _stale(plan: Plan, settings: ReevaluateParams) -> dict[str, dict[str, list[str]]]:
    return {name: found for name in settings.evaluations if (found := plan.causes(name))}


def _check_stages(settings: ReevaluateParams, where: Where) -> None:
    """Refuse evaluations that there are none of, or that train SAEs, which a registered version has no data for."""
    known = {stage.entry: stage for stage in catalog.stages().values() if stage.entry}
    for name in settings.evaluations:
        if name in REPEATED:
            continue
        trains = name in known and "training" in known[name].code
        raise UserError(
            f"evaluation '{name}' trains SAEs, so it cannot be repeated for a registered one"
            if trains
            else f"there is no evaluation '{name}' of one SAE that could be repeated",
            where=where(f"{REEVALUATE}.evaluations"),
            fix="leave it out; it runs with the training: dvc repro pipelines/evaluate/dvc.yaml"
            if trains
            else did_you_mean(name, REPEATED),
        )
    for name in settings.stages:
        if name not in REPEATS:
            raise UserError(
                f"a re-evaluation does not run '{name}'",
                where=where(f"{REEVALUATE}.stages.{name}"),
                fix=did_you_mean(name, REPEATS),
            )


def _check_tolerances(settings: ReevaluateParams, metrics: Mapping[str, float], where: Where) -> None:
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
                        where=where(f"{REEVALUATE}.{section}.{evaluation}.{metric}"),
                        fix=did_you_mean(metric, names),
                    )
