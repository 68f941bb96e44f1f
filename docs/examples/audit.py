"""Check a verdict with other people's code: python audit.py trust.json attestation.json DIRECTORY NAME

Of vetgate nothing is used: securesystemslib verifies the DSSE envelope, in-toto-attestation the statement in it.
"""

import base64
import hashlib
import json
import os
import re
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import in_toto_attestation.v1.statement_pb2 as proto
from google.protobuf.json_format import MessageToDict, ParseDict
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

PREDICATE = "https://vetgate.dev/attestation/verdict/v1"
MANIFEST = "manifest:sha256"
MOST_JSON, MOST_FILES = 8 << 20, 1 << 30
SKEW = timedelta(minutes=5)


def audit(trust: Path, attestation: Path, directory: Path, name: str) -> dict:
    """The verdict on exactly these files under this name; raises an error, ours or a library's, where none holds."""
    now, root = datetime.now(UTC), parsed(plain_file(trust.resolve(), MOST_JSON))
    keys, revoked = gate_keys(root), {sha256(digest) for digest in root["revoked"]}
    sealed = plain_file(attestation.resolve(), MOST_JSON)
    envelope = Envelope.from_dict(parsed(sealed))
    # who signed, before anything of it is believed
    envelope.verify([key for key, _, _ in keys.values()], threshold=1)
    (signature,) = parsed(sealed)["signatures"]
    if envelope.to_dict() != parsed(sealed) or set(signature) != {"keyid", "sig"}:
        raise ValueError("expected an envelope in its one spelling, got another")

    statement = Statement.copy_from_pb(ParseDict(parsed(envelope.payload), proto.Statement()))
    statement.validate()
    if envelope.payload_type != "application/vnd.in-toto+json" or statement.pb.predicate_type != PREDICATE:
        raise ValueError(f"no verdict: {envelope.payload_type}, {statement.pb.predicate_type}")
    stated = {(subject.name, *subject.digest.items()) for subject in statement.pb.subject}
    if len(stated) != len(statement.pb.subject) or stated != found_in(directory, {name for name, *_ in stated}):
        raise ValueError("other files than those that were vetted")

    verdict = MessageToDict(statement.pb.predicate)
    if verdict["name"] != name:
        raise ValueError(f"a verdict on another name, {verdict['name']!r}")
    issued, (_, not_before, not_after) = moment(verdict["issued"]), keys[signature["keyid"]]
    if not (issued <= now + SKEW and not_before <= issued and max(now, issued) < not_after):
        raise ValueError("issued later than now, or outside the window of its key")
    given = [verdict]
    digests = {hashlib.sha256(envelope.payload).hexdigest()}
    if verdict["verdict"] == "WAIVED":
        if not verdict["waivers"] or not verdict["approvals"]:
            raise ValueError("waived by nobody")
        given += verdict["waivers"]
        digests |= {sha256(item["digest"]) for item in verdict["waivers"] + verdict["approvals"]}
    if digests & revoked or not issued < min(ends := [moment(item["expires"]) for item in given]) or min(ends) <= now:
        raise ValueError("revoked, or expired")
    return verdict


def gate_keys(root: dict) -> dict[str, tuple[SSlibKey, datetime, datetime]]:
    """The keys of gates by their ids, with their windows."""
    found = {}
    for key in root["keys"]:
        raw = base64.b64decode(key["public_key"], validate=True)
        if key["keyid"] != hashlib.sha256(raw).hexdigest() or key["keyid"] in found:
            raise ValueError(f"expected each key once under its own id, got {key['keyid']!r}")
        # securesystemslib takes the 32 bytes in hex
        public = SSlibKey(key["keyid"], "ed25519", "ed25519", {"public": raw.hex()})
        found[key["keyid"]] = key["role"], (public, moment(key["not_before"]), moment(key["not_after"]))
    return {keyid: key for keyid, (role, key) in found.items() if role == "gate"}


def found_in(directory: Path, expected: set[str]) -> set[tuple]:
    """Name and digest of each file, and of their manifest, as a statement has them."""
    if set(os.listdir(directory)) != expected - {MANIFEST}:
        raise ValueError("other files than those that were vetted")
    entries, left = [], MOST_FILES
    for name in sorted(os.listdir(directory)):
        data = plain_file(directory / name, left, alone=True)
        entries.append({"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
        left -= len(data)
    manifest = json.dumps({"files": entries}, sort_keys=True, separators=(",", ":")).encode()
    found = {MANIFEST: hashlib.sha256(manifest).hexdigest()} | {entry["path"]: entry["sha256"] for entry in entries}
    return {(name, ("sha256", digest)) for name, digest in found.items()}


def plain_file(path: Path, most: int, *, alone: bool = False) -> bytes:
    """What a plain file of this name holds: neither a link is followed nor a pipe waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (alone and status.st_nlink != 1):
            raise ValueError(f"expected a plain file of one name, got {path}")
        if status.st_size > most:
            raise ValueError(f"expected at most {most} bytes, got {status.st_size} in {path}")
        return file.read(most)


def parsed(data: bytes) -> dict:
    """The JSON object, in which no key stands twice."""

    def once(pairs: list) -> dict:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a key given twice")
        return found

    return json.loads(data, object_pairs_hook=once)


def sha256(text: str) -> str:
    """The digest, which has one spelling."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"expected a SHA-256 in hex, got {text!r}")
    return text


def moment(text: str) -> datetime:
    """The time that a trust root or a statement writes."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


if __name__ == "__main__":
    said = audit(*map(Path, sys.argv[1:4]), *sys.argv[4:5])
    print(said["name"], said["verdict"])
    sys.exit(0 if said["verdict"] in ("PASS", "WAIVED") else 1)
