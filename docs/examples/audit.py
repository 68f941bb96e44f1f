"""Check a verdict with other people's code: python audit.py trust.json attestation.json DIRECTORY

Of vetgate nothing is used: securesystemslib verifies the DSSE envelope, in-toto-attestation the statement in it.
"""

import base64
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import in_toto_attestation.v1.statement_pb2 as proto
from google.protobuf.json_format import MessageToDict, ParseDict
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

PREDICATE = "https://vetgate.dev/attestation/verdict/v1"
MANIFEST = "manifest:sha256"


def audit(trust: Path, attestation: Path, directory: Path) -> dict:
    """The verdict on exactly these files; raises an error of either library, or ValueError, where it does not hold."""
    root = json.loads(trust.read_text(encoding="utf-8"))
    now = datetime.now(UTC)
    keys = [
        SSlibKey(key["keyid"], "ed25519", "ed25519", {"public": raw_public_key(key)})
        for key in root["keys"]
        if key["role"] == "gate" and moment(key["not_before"]) <= now < moment(key["not_after"])
    ]
    envelope = Envelope.from_dict(json.loads(attestation.read_text(encoding="utf-8")))
    # who signed, before anything of it is believed
    envelope.verify(keys, threshold=1)

    statement = Statement.copy_from_pb(ParseDict(json.loads(envelope.payload), proto.Statement()))
    statement.validate()
    if envelope.payload_type != "application/vnd.in-toto+json" or statement.pb.predicate_type != PREDICATE:
        raise ValueError(f"no verdict: {envelope.payload_type}, {statement.pb.predicate_type}")
    stated = {subject.name: subject.digest["sha256"] for subject in statement.pb.subject if subject.name != MANIFEST}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
    if stated != found:
        raise ValueError(f"other files than those that were vetted: {sorted(stated.items() ^ found.items())}")

    verdict = MessageToDict(statement.pb.predicate)
    if hashlib.sha256(envelope.payload).hexdigest() in root["revoked"] or not now < moment(verdict["expires"]):
        raise ValueError("revoked, or expired")
    return verdict


def raw_public_key(key: dict) -> str:
    """The 32 bytes in hex, as securesystemslib takes them."""
    return base64.b64decode(key["public_key"], validate=True).hex()


def moment(text: str) -> datetime:
    """The time that a trust root or a statement writes."""
    return datetime.fromisoformat(text)


if __name__ == "__main__":
    said = audit(*map(Path, sys.argv[1:4]))
    print(said["name"], said["verdict"])
    sys.exit(0 if said["verdict"] in ("PASS", "WAIVED") else 1)
