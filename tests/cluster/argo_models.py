"""Argo's own models, as `hera` has them, without what importing it does to others.

It changes how PyYAML writes texts with line breaks, for the whole process: whatever is rendered after it differs.
"""

from __future__ import annotations

import yaml

_DUMPERS = (yaml.representer.SafeRepresenter, yaml.representer.Representer, yaml.Dumper, yaml.SafeDumper)
_before = [dict(dumper.yaml_representers) for dumper in _DUMPERS]

import hera.workflows.models as argo  # noqa: E402

for _dumper, _representers in zip(_DUMPERS, _before, strict=True):
    _dumper.yaml_representers = _representers

__all__ = ["argo"]
