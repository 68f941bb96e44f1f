"""The buckets are closed and kept, and each role may do in the store what the code of its zone does, and no more."""

from __future__ import annotations

import ast
import functools
import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import hcl2
import pytest

from flows.service.check import PROBE
from tests.infra.known import ROOT
from tests.infra.kustomize import documents
from vetgate.shape import Blob

HERE = ROOT / "infra" / "terraform"
BUCKETS, IAM = HERE / "modules" / "s3-buckets", HERE / "modules" / "iam"
# what only the gate may write: by these the rest of the world believes it
GATES_OWN = {
    "approvals", "attestations", "canaries", "ledger", "moves", "promotions", "rescans", "revocations",
    "tampered", "verdicts", "vetted", "waivers",
}  # fmt: skip
# what changes; everything else is written once
REPLACED = {"leases", "probe"}
TO_WRITE = {"s3:PutObject", "s3:DeleteObject", "s3:DeleteObjectVersion", "s3:AbortMultipartUpload"}
# a name of the store as the code writes it: a part and a slash, and then a value
KEY = re.compile(r"([a-z-]+)/")
# what the code puts together so and is no name of the store: files of a report
ELSEWHERE = {"triggers"}


def read(text: str) -> Any:
    """The content of a Terraform file, its strings without their quotes."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {plain(k): plain(v) for k, v in value.items() if k not in ("__is_block__", "__comments__")}
        if isinstance(value, list):
            return [plain(item) for item in value]
        quoted = isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"'
        return value[1:-1] if quoted else value

    return plain(hcl2.load(io.StringIO(text)))


def module(folder: Path) -> Blob:
    """A module, to be tampered with at will: locals, resources and data by type and name."""
    return deepcopy(_module(folder))


@functools.cache
def _module(folder: Path) -> Blob:
    whole: Blob = {"locals": {}, "resource": {}, "data": {}}
    for path in sorted(folder.glob("*.tf")):
        found = read(path.read_text())
        for block in found.get("locals", []):
            whole["locals"] |= block
        for kind in ("resource", "data"):
            for block in found.get(kind, []):
                for type_, named in block.items():
                    whole[kind].setdefault(type_, {}).update(named)
    return whole


def bucket_problems(buckets: Blob) -> list[str]:
    """What the module of the buckets leaves open."""
    resources, found = buckets["resource"], []
    every = resources["aws_s3_bucket"]["this"]["for_each"]
    for type_ in (
        "versioning",
        "server_side_encryption_configuration",
        "public_access_block",
        "ownership_controls",
        "policy",
    ):
        block = resources.get(f"aws_s3_bucket_{type_}", {}).get("this", {})
        if block.get("for_each") != every or "aws_s3_bucket.this[each.key]" not in str(block.get("bucket")):
            found.append(f"not every bucket has {type_}")
    if _inner(resources, "versioning", "versioning_configuration").get("status") != "Enabled":
        found.append("versions are not kept")
    if "aws:kms" not in str(resources.get("aws_s3_bucket_server_side_encryption_configuration")):
        found.append("objects are not encrypted under a key of ours")
    blocks = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    shut = resources.get("aws_s3_bucket_public_access_block", {}).get("this", {})
    found += [f"{name} is off" for name in blocks if shut.get(name) is not True]
    if buckets["locals"]["buckets"]["store"].get("locked") is not True:
        found.append("the store is not locked")
    if "locked" not in str(resources["aws_s3_bucket"]["this"].get("object_lock_enabled")):
        found.append("no bucket is made with object lock")
    return found + _bucket_policy(buckets["data"]["aws_iam_policy_document"]["bucket"])


def _inner(resources: Blob, type_: str, name: str) -> Blob:
    found = resources.get(f"aws_s3_bucket_{type_}", {}).get("this", {}).get(name, {})
    return dict(found[0] if isinstance(found, list) else found)


def _bucket_policy(document: Blob) -> list[str]:
    statements = {item["sid"]: item for item in document["statement"]}
    found = []
    tls = statements.get("TlsOnly", {})
    if tls.get("effect") != "Deny" or tls["condition"][0]["variable"] != "aws:SecureTransport":
        found.append("plain HTTP is let in")
    lasting = statements.get("NothingIsRemoved", {})
    if lasting.get("effect") != "Deny" or not {"s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"} <= set(
        lasting["actions"]
    ):
        found.append("what is kept can be removed")
    (new,) = [item["statement"]["content"][0] for item in document.get("dynamic", [])] or [{}]
    if new.get("effect") != "Deny" or new["condition"][0]["variable"] != "s3:if-none-match":
        found.append("objects can be written over")
    excepted = {name.rsplit("}/", 1)[-1] for name in new.get("not_resources", [])}
    if excepted != {".conditional-writes", *(f"{prefix}/*" for prefix in REPLACED)}:
        found.append(f"{sorted(excepted)} can be written over")
    return found


def role_problems(iam: Blob) -> list[str]:
    """What a role may do that its zone must not."""
    zones, found = iam["locals"]["zones"], []
    for name, document in iam["data"]["aws_iam_policy_document"].items():
        for statement in _statements(document):
            found += [f"{name} allows {action}" for action in statement["actions"] if "*" in action]
            found += [f"{name} allows removing" for action in statement["actions"] if "Delete" in action]
            resources = statement.get("resources")
            if statement.get("effect", "Allow") != "Allow" or (isinstance(resources, list) and "*" in resources):
                found.append(f"{name} allows it everywhere")
            writes = set(statement["actions"]) & TO_WRITE
            if name == "store" and writes and statement["sid"] != "Write":
                found.append(f"{name} writes in the statement {statement['sid']}")
            if name == "read" and writes:
                found.append("read writes")
    for zone, may in zones.items():
        theirs = set(may["creates"]) | set(may["replaces"])
        if zone != "gate":
            found += [f"{zone} writes {prefix}" for prefix in sorted(theirs & GATES_OWN)]
        found += [f"{zone} replaces {prefix}" for prefix in may["replaces"] if prefix not in REPLACED]
        if may["data"] not in ("none", "read"):
            found.append(f"{zone} writes reference data")
    if zones["serving"]["creates"] or zones["serving"]["replaces"] or zones["serving"]["artifacts"] == "write":
        found.append("serving writes")
    return found


def _statements(document: Blob) -> Iterator[Blob]:
    yield from document.get("statement", [])
    for item in document.get("dynamic", []):
        yield from item["statement"]["content"]


def prefixes_in_code() -> set[str]:
    """The first part of every store key that tasks/ and flows/ put together."""
    found = {PROBE.partition("/")[0]}
    for path in sorted([*ROOT.glob("tasks/**/*.py"), *ROOT.glob("flows/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            # the constant parts of an f-string are nodes of their own
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and (key := KEY.fullmatch(node.value)):
                found.add(key[1])
    return found - ELSEWHERE


def test_every_bucket_is_closed_and_kept():
    assert bucket_problems(module(BUCKETS)) == []


def test_every_role_may_do_its_own_and_no_more():
    assert role_problems(module(IAM)) == []


def _policy(of: Blob) -> Blob:
    found: Blob = of["data"]["aws_iam_policy_document"]["bucket"]
    return found


BUCKET_BREAKS: dict[str, tuple[Callable[[Blob], object], str]] = {
    "versions": (lambda b: b["resource"].pop("aws_s3_bucket_versioning"), "has versioning"),
    "suspended": (
        lambda b: b["resource"]["aws_s3_bucket_versioning"]["this"]["versioning_configuration"][0].update(
            status="Suspended"
        ),
        "versions are not kept",
    ),
    "one bucket": (
        lambda b: b["resource"]["aws_s3_bucket_versioning"]["this"].update(for_each="${local.some}"),
        "not every bucket has versioning",
    ),
    "encryption": (lambda b: b["resource"].pop("aws_s3_bucket_server_side_encryption_configuration"), "encrypted"),
    "public": (
        lambda b: b["resource"]["aws_s3_bucket_public_access_block"]["this"].update(block_public_policy=False),
        "block_public_policy is off",
    ),
    "lock": (lambda b: b["locals"]["buckets"]["store"].update(locked=False), "not locked"),
    "tls": (lambda b: _policy(b)["statement"][0].update(effect="Allow"), "plain HTTP"),
    "remove": (lambda b: _policy(b)["statement"][1]["actions"].remove("s3:DeleteObjectVersion"), "can be removed"),
    "overwrite": (lambda b: _policy(b).pop("dynamic"), "written over"),
    "overwrite more": (
        lambda b: _policy(b)["dynamic"][0]["statement"]["content"][0]["not_resources"].append("${arn}/attestations/*"),
        "'attestations/*'",
    ),
}


@pytest.mark.parametrize("case", BUCKET_BREAKS)
def test_a_bucket_that_is_left_open_is_found(case: str):
    buckets, (tamper, expected) = module(BUCKETS), BUCKET_BREAKS[case]
    tamper(buckets)
    assert any(expected in problem for problem in bucket_problems(buckets)), bucket_problems(buckets)


def _zone(iam: Blob, name: str) -> Blob:
    found: Blob = iam["locals"]["zones"][name]
    return found


def _store(iam: Blob) -> list[Blob]:
    return list(_statements(iam["data"]["aws_iam_policy_document"]["store"]))


ROLE_BREAKS: dict[str, tuple[Callable[[Blob], object], str]] = {
    "vet signs": (lambda i: _zone(i, "vet")["creates"].append("attestations"), "vet writes attestations"),
    "vet tells": (lambda i: _zone(i, "vet")["creates"].append("ledger"), "vet writes ledger"),
    "vet lets in": (lambda i: _zone(i, "vet")["replaces"].append("vetted"), "vet writes vetted"),
    "intake revokes": (lambda i: _zone(i, "intake")["creates"].append("revocations"), "intake writes revocations"),
    "gate replaces": (lambda i: _zone(i, "gate")["replaces"].append("ledger"), "gate replaces ledger"),
    "serving": (lambda i: _zone(i, "serving")["creates"].append("results"), "serving writes"),
    "data": (lambda i: _zone(i, "vet").update(data="write"), "writes reference data"),
    "anything": (lambda i: _store(i)[0]["actions"].append("s3:*"), "allows s3:*"),
    "removal": (lambda i: _store(i)[2]["actions"].append("s3:DeleteObject"), "allows removing"),
    "find": (lambda i: _store(i)[0]["actions"].append("s3:PutObject"), "writes in the statement Find"),
    "everywhere": (lambda i: _store(i)[0].update(resources=["*"]), "everywhere"),
}


@pytest.mark.parametrize("case", ROLE_BREAKS)
def test_a_role_that_may_do_more_is_found(case: str):
    iam, (tamper, expected) = module(IAM), ROLE_BREAKS[case]
    tamper(iam)
    assert any(expected in problem for problem in role_problems(iam)), role_problems(iam)


def test_the_policies_are_made_of_the_table_of_zones():
    find, read_, write = _store(module(IAM))
    assert find["actions"] == ["s3:ListBucket"]
    assert read_["actions"] == ["s3:GetObject"]
    dynamic = module(IAM)["data"]["aws_iam_policy_document"]["store"]["dynamic"]
    sources = [item["statement"]["for_each"] for item in dynamic]
    assert "[each.value.reads]" in sources[0] and "[concat(each.value.creates, each.value.replaces)]" in sources[1]
    assert all("for prefix in statement.value" in str(item["resources"]) for item in (read_, write))


def test_every_part_of_the_store_has_a_role_that_writes_it_and_no_part_is_invented():
    zones = module(IAM)["locals"]["zones"].values()
    assert {prefix for may in zones for prefix in (*may["creates"], *may["replaces"])} == prefixes_in_code()


def test_a_part_that_is_read_is_one_that_a_role_writes():
    zones = module(IAM)["locals"]["zones"].values()
    assert {prefix for may in zones for prefix in may["reads"]} <= prefixes_in_code()


def test_roles_are_taken_on_by_the_service_accounts_of_the_manifests():
    accounts = {
        (blob["metadata"]["namespace"], blob["metadata"]["name"])
        for path in (ROOT / "infra" / "kubernetes" / "base").glob("*/zone.yaml")
        for blob in documents(path)
        if blob["kind"] == "ServiceAccount"
    }
    zones = module(IAM)["locals"]["zones"]
    assert {(f"vetgate-{zone}", may["account"]) for zone, may in zones.items()} == accounts


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not installed")
def test_the_files_are_formatted_as_terraform_does():
    line = ["terraform", "fmt", "-check", "-diff", "-recursive", str(HERE)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
