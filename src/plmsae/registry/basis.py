"""What an evaluation's numbers rest on: data, PLM, SAE, code and parameters; and which of them have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from plmsae.errors import DataError
from plmsae.registry.tracking import flatten

DATA, PLM, SAE, CODE, PARAMETERS = "data", "plm", "sae", "code", "parameters"
CAUSES = (DATA, PLM, SAE, CODE, PARAMETERS)
NOT_RECORDED = "not recorded"
# Parameters of the extraction that change what an evaluation reads; the others say where and how fast.
_EXTRACTION = ("dtype", "precision", "non_finite")
# What a file is called or where it lies is not what it holds: that is its checksum, under `data`.
_LABELS = ("source", "source_name", "release", "licence")
# Numbers do not depend on them.
_SPEED = ("threads",)
_SHOWN = 12  # characters of a checksum


@dataclass(frozen=True)
class Basis:
    """What the numbers of one evaluation rest on.

    Attributes:
        data: `<stage>.<parameter>` of a raw file -> its sha256.
        plm: `<name>@<revision>`.
        sae: sha256 of the manifest of the trained SAE.
        code: Stage -> fingerprint of the code that its numbers depend on.
        parameters: Dotted name -> value, of all stages on the way.
    """

    data: Mapping[str, str]
    plm: str
    sae: str
    code: Mapping[str, str]
    parameters: Mapping[str, Any]

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in asdict(self).items()}

    @classmethod
    def parse(cls, data: Any, where: str) -> Basis:
        """From its JSON form.

        Raises:
            DataError: It is none.
        """
        try:
            basis = cls(**data)
            kinds = [isinstance(part, Mapping) for part in (basis.data, basis.code, basis.parameters)]
        except TypeError:
            kinds = [False]
        if not all(kinds):
            raise DataError(
                "the record of what was evaluated is damaged",
                where=where,
                fix="somebody edited it: remove the tag 'reevaluation' in MLflow; everything is evaluated again then",
            )
        return basis


def parameters(sections: Mapping[str, Mapping[str, Any]], raw_files: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The parameters that numbers depend on, with dotted names.

    Args:
        sections: Stage -> its parameters, of the ingest, the extraction and the evaluation.
        raw_files: Stage -> its parameters that name a raw file.
    """
    found: dict[str, Any] = {}
    for stage, params in sections.items():
        files = {name for file in raw_files.get(stage, ()) for name in (file, f"{file}_sha256")}
        for name, value in flatten(params).items():
            head = name.partition(".")[0]
            if stage == "extract_activations" and head not in _EXTRACTION:
                continue
            if name in files or head in _SPEED or (stage == "ingest" and head in _LABELS):
                continue
            found[f"{stage}.{name}"] = value
    return found


def changes(before: Basis | None, now: Basis) -> dict[str, list[str]]:
    """Cause -> what exactly changed, in words; empty if the numbers would be the same.

    Args:
        before: What the recorded numbers rest on; None if that was not recorded, which is a cause of its own.
        now: What they would rest on now.
    """
    if before is None:
        return {NOT_RECORDED: ["the version does not say what its numbers rest on"]}
    found = {
        DATA: _different(before.data, now.data),
        PLM: [] if before.plm == now.plm else [f"{before.plm} -> {now.plm}"],
        SAE: [] if before.sae == now.sae else [f"evaluated was {_short(before.sae)}, the version is {_short(now.sae)}"],
        CODE: _different(before.code, now.code),
        PARAMETERS: _different(*_in_both(before, now)),
    }
    return {cause: lines for cause, lines in found.items() if lines}


def recorded(
    stages: Mapping[str, Mapping[str, Any]], evaluation: str, plm: str, raw_files: Mapping[str, tuple[str, ...]]
) -> Basis | None:
    """The basis of an evaluation that a version was registered with.

    Args:
        stages: Input port of the register stage -> its record, from `lineage.lineage`.
        evaluation: E.g. `fidelity`.
        plm: `<name>@<revision>` of the version.
        raw_files: Stage -> its parameters that name a raw file.

    Returns:
        None if the version was registered without this evaluation, or without a record of it.
    """
    ports = {"ingest": "sequences", "extract_activations": "activations", f"evaluate@{evaluation}": evaluation}
    found = {stage: stages.get(port) or {} for stage, port in ports.items()}
    if any(record.get("params") is None for record in found.values()):
        return None
    return Basis(
        data={
            f"{stage}.{name}": sha
            for stage, record in found.items()
            for name, sha in (record.get("source_files") or {}).items()
        },
        plm=plm,
        sae=(found[f"evaluate@{evaluation}"].get("inputs") or {}).get("sae", ""),
        code={stage: record.get("code_sha256") or "" for stage, record in found.items()},
        parameters=parameters({stage: record["params"] for stage, record in found.items()}, raw_files),
    )


def _in_both(before: Basis, now: Basis) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of both; one that only other code has came or went with that code, and is no cause of its own."""

    def counts(name: str) -> bool:
        stage = name.partition(".")[0]
        shared = name in before.parameters and name in now.parameters
        return shared or before.code.get(stage) == now.code.get(stage)

    first, second = ({name: value for name, value in side.parameters.items() if counts(name)} for side in (before, now))
    return first, second


def _different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {_short(before.get(name))} -> {_short(now.get(name))}"
        for name in sorted({*before, *now})
        if (name in before) != (name in now) or before[name] != now[name]
    ]


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    hexadecimal = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:_SHOWN] if hexadecimal else text
