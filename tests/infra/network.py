"""Who reaches whom in a cluster, by its network policies, as Kubernetes adds them up."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network

from tests.infra.kustomize import pod_of
from vetgate.shape import Blob

Pod = tuple[str, str]


def of(blobs: list[Blob], kind: str) -> list[Blob]:
    """The resources of a kind."""
    return [blob for blob in blobs if blob["kind"] == kind]


def space_of(blob: Blob) -> str:
    """The namespace of a resource, "" if it has none."""
    return str(blob["metadata"].get("namespace", ""))


def match_labels(selector: Blob) -> Blob:
    """The labels that a selector wants."""
    return selector.get("matchLabels", selector)


def fits(labels: Blob, wanted: Blob) -> bool:
    """Whether these labels hold those."""
    return all(labels.get(key) == value for key, value in wanted.items())


def pods(blobs: list[Blob]) -> dict[Pod, Blob]:
    """The labels of each workload's pods by namespace and name."""
    templates = ((blob, pod_of(blob)) for blob in blobs)
    return {(space_of(b), b["metadata"]["name"]): t["metadata"]["labels"] for b, t in templates if t is not None}


def reaches(blobs: list[Blob], source: Pod, target: Pod, port: int) -> bool:
    """Whether the network policies let a connection through, as Kubernetes adds them up."""
    labels = pods(blobs)
    policies = of(blobs, "NetworkPolicy")
    out = _lets(
        policies, source, labels[source], "Egress", lambda peer: _is(peer, source[0], target, labels[target]), port
    )
    return out and _lets(
        policies, target, labels[target], "Ingress", lambda peer: _is(peer, target[0], source, labels[source]), port
    )


def outside(blobs: list[Blob], source: Pod, address: str, port: int) -> bool:
    """Whether a pod may connect to an address that is no pod's."""
    return _lets(
        of(blobs, "NetworkPolicy"), source, pods(blobs)[source], "Egress", lambda peer: _holds(peer, address), port
    )


def _lets(policies: list[Blob], pod: Pod, labels: Blob, way: str, is_peer: Callable[[Blob], bool], port: int) -> bool:
    mine = [p["spec"] for p in policies if space_of(p) == pod[0] and _selects(p["spec"]["podSelector"], labels)]
    mine = [spec for spec in mine if way in spec["policyTypes"]]
    rules = [rule for spec in mine for rule in spec.get(way.lower(), [])]
    side = "to" if way == "Egress" else "from"
    return not mine or any(
        (side not in rule or any(map(is_peer, rule[side])))
        and ("ports" not in rule or any(p.get("protocol", "TCP") == "TCP" and p["port"] == port for p in rule["ports"]))
        for rule in rules
    )


def _is(peer: Blob, own: str, other: Pod, labels: Blob) -> bool:
    if "ipBlock" in peer:
        return False
    space = {"kubernetes.io/metadata.name": other[0]}
    near = _selects(peer["namespaceSelector"], space) if "namespaceSelector" in peer else other[0] == own
    return near and _selects(peer.get("podSelector", {}), labels)


def _holds(peer: Blob, address: str) -> bool:
    block = peer.get("ipBlock")
    inside = (
        [ip_network(address).subnet_of(ip_network(n)) for n in [block["cidr"], *block.get("except", [])]]
        if block
        else []
    )
    return bool(inside) and inside[0] and not any(inside[1:])


def _selects(selector: Blob, labels: Blob) -> bool:
    listed = all(
        e["operator"] == "In" and labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
    )
    return fits(labels, selector.get("matchLabels", {})) and listed
