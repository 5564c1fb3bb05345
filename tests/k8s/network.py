"""What network policies let through, by the rules of their API: who may open a connection to whom, on which port."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """A pod with its namespace, or an address outside the cluster."""

    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    address: str = ""


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; the empty one takes all."""
    for expression in selector.get("matchExpressions", ()):
        if expression["operator"] != "Exists":
            raise ValueError(f"operator {expression['operator']}")
        if expression["key"] not in labels:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def allowed(policies: list[dict[str, Any]], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is let out by its source's side and in by its target's."""
    return _passes(policies, "Egress", source, target, port, protocol) and _passes(
        policies, "Ingress", target, source, port, protocol
    )


def _passes(
    policies: list[dict[str, Any]], direction: str, subject: Peer, other: Peer, port: int, protocol: str
) -> bool:
    """A pod that no policy of a direction selects is free; otherwise one of their rules has to allow it."""
    rules, peers = {"Egress": ("egress", "to"), "Ingress": ("ingress", "from")}[direction]
    mine = [
        policy
        for policy in policies
        if not subject.address
        and policy["metadata"]["namespace"] == subject.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], subject.labels)
    ]
    if not mine:
        return True
    for policy in mine:
        for rule in policy["spec"].get(rules, ()):
            ports = rule.get("ports")
            if ports and not any((item["port"], item["protocol"]) == (port, protocol) for item in ports):
                continue
            listed = rule.get(peers)
            if not listed or any(_is(peer, other, subject.namespace) for peer in listed):
                return True
    return False


def _is(peer: dict[str, Any], other: Peer, namespace: str) -> bool:
    if "ipBlock" in peer:
        return bool(other.address) and ipaddress.ip_address(other.address) in ipaddress.ip_network(
            peer["ipBlock"]["cidr"]
        )
    if other.address:
        return False
    if "namespaceSelector" in peer:
        inside = selects(peer["namespaceSelector"], {NAME_LABEL: other.namespace})
    else:
        inside = other.namespace == namespace
    return inside and selects(peer.get("podSelector", {}), other.labels)
