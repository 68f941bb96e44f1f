"""Records of people: what they sign lies in the store, and the gate, which alone can enter it, is notified."""

from __future__ import annotations

from tasks.settings import Settings
from vetgate import errors
from vetgate.errors import VetgateError
from vetgate.shape import Blob


def notify_gate(settings: Settings, key: str, manifest: str | None = None) -> Blob:
    """Have the gate enter what lies under a key, and issue the waiver that it completes; raises what it answers."""
    request: Blob = {"op": "record", "key": key, "manifest": manifest}
    if settings.gate_url is not None:
        from flows.gate.client import gate

        return gate(settings).ask(request)
    from flows.gate.decide import answer

    # on one machine the gate is a process of the same user, and this one is as good as another
    answered = answer(settings, request)
    if "error" in answered:
        kind: type[VetgateError] = getattr(errors, str(answered["kind"]), VetgateError)
        raise kind(str(answered["error"]))
    return answered
