"""What a scan can find: each rule with its severity, what to do, and its ids in MITRE ATLAS 5.6.1 and CWE.

A file is malicious if a finding is critical or high, and inconclusive if one is medium: what was not read to its last
byte, or holds a program that nobody has read, is never clean.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is: the first two make a file malicious, the third makes it inconclusive."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclass(frozen=True)
class ScanRule:
    """One thing that can be found in a file."""

    id: str
    name: str
    severity: Severity
    text: str
    why: str
    help: str
    taxa: tuple[str, ...]

    @property
    def level(self) -> str:
        """The severity in the words of SARIF."""
        return {Severity.MEDIUM: "warning", Severity.LOW: "note"}.get(self.severity, "error")


CRITICAL, HIGH, MEDIUM, LOW = Severity
SAFE = "Hand in safetensors, ONNX, or a state dict of tensors."
ARTIFACT = ("AML.T0011.000", "AML.T0018.002")
BROKEN = ("AML.T0076",)

# fmt: off
PICKLE_CALL = ScanRule(
    "VET-101", "PickleCall", CRITICAL,
    "A pickle imports what is known to run code, reach the system or load more of it.",
    "Loading a pickle imports and calls whatever it names, before its data can be looked at.",
    f"Do not load it. {SAFE}", (*ARTIFACT, "CWE-502"),
)
PICKLE_GLOBAL = ScanRule(
    "VET-102", "PickleGlobal", HIGH,
    "A pickle imports something that is not on the allow-list.",
    "Lists of what is forbidden are never complete, so everything but what rebuilds tensors and arrays is refused.",
    f"Do not load it. {SAFE}", (*ARTIFACT, "CWE-502"),
)
PICKLE_UNRESOLVED = ScanRule(
    "VET-103", "PickleUnresolved", HIGH,
    "A pickle imports something whose name is only known when it is loaded.",
    "Names that are computed, or numbers of the extension registry, hide what is called.",
    f"Do not load it. {SAFE}", (*ARTIFACT, "AML.T0015", "CWE-502"),
)
PICKLE_MISUSE = ScanRule(
    "VET-104", "PickleMisuse", HIGH,
    "A pickle uses an allowed import in another way than the one that is harmless.",
    "What rebuilds a tensor is allowed with a storage, sizes and strides, and with nothing else.",
    f"Save the weights again with torch.save(model.state_dict()). {SAFE}", (*ARTIFACT, "CWE-502"),
)
PICKLED_MODULE = ScanRule(
    "VET-105", "PickledModule", HIGH,
    "A whole module was pickled: its classes are code that runs when it is loaded.",
    "Unpickling a module imports its class, whose code decides what the weights do; it is not in the file.",
    f"Save model.state_dict() only. {SAFE}", ("AML.T0011.000", "CWE-502"),
)
PICKLE_BROKEN = ScanRule(
    "VET-106", "PickleBroken", MEDIUM,
    "A pickle was not read to its end.",
    "A loader runs what stands before the fault; scanners that give up there see nothing.",
    f"Save it again. {SAFE}", (*BROKEN, "CWE-502"),
)
PICKLE_OBJECTS = ScanRule(
    "VET-107", "PickleObjects", MEDIUM,
    "A pickle holds what no data format needs: object arrays, foreign persistent ids, buffers from elsewhere.",
    "What these become is decided by who loads them.",
    f"Store plain arrays. {SAFE}", ("AML.T0011.000", "CWE-502"),
)
TENSOR_BOUNDS = ScanRule(
    "VET-108", "TensorBounds", HIGH,
    "A tensor reaches out of its storage, or a storage has another length than it says.",
    "Loaders that do not check this read or write memory that is not the tensor's.",
    f"Save it again. {SAFE}", (*BROKEN, "CWE-125", "CWE-787"),
)
HIDDEN_BYTES = ScanRule(
    "VET-201", "HiddenBytes", MEDIUM,
    "Bytes that belong to nothing: before, between or after what was understood.",
    "Another program may read the file from there.",
    "Write the file anew with a common tool.", ("AML.T0015", "CWE-436"),
)
HIDDEN_MEMBER = ScanRule(
    "VET-202", "HiddenMember", HIGH,
    "An archive holds a member that its directory does not list.",
    "One reader walks the directory, another the members: they see different files.",
    "Write the archive anew with a common tool.", ("AML.T0015", "CWE-436"),
)
DISAGREEMENT = ScanRule(
    "VET-203", "Disagreement", HIGH,
    "An archive says two things of one member.",
    "Readers that believe the one or the other see different bytes, so a scanner may not see what is loaded.",
    "Write the archive anew with a common tool.", ("AML.T0015", "CWE-436"),
)
UNSAFE_PATH = ScanRule(
    "VET-204", "UnsafePath", HIGH,
    "A path leads out of the directory: absolute, with a drive, or with `..`.",
    "Unpacking or loading it reads or writes files elsewhere.",
    "Use relative paths within the directory.", ("AML.T0011.000", "CWE-22"),
)
LINK = ScanRule(
    "VET-205", "Link", MEDIUM,
    "A link, device or pipe where a plain file is expected.",
    "What it leads to is not in what was scanned.",
    "Hand in a copy of the file.", ("CWE-59",),
)
ENCRYPTED = ScanRule(
    "VET-206", "Encrypted", MEDIUM,
    "A member is said to be encrypted.",
    "What cannot be read cannot be judged; some loaders ignore the mark and read it all the same.",
    "Hand it in unencrypted.", ("AML.T0015", "CWE-436"),
)
DUPLICATE = ScanRule(
    "VET-207", "Duplicate", MEDIUM,
    "A name is given twice.",
    "One reader takes the first, another the last.",
    "Write it anew with each name once.", ("CWE-436",),
)
CORRUPT = ScanRule(
    "VET-208", "Corrupt", MEDIUM,
    "A file is not what its format demands: truncated, altered or malformed.",
    "What one reader refuses another may load.",
    "Write the file anew.", BROKEN,
)
BOMB = ScanRule(
    "VET-209", "Bomb", MEDIUM,
    "Content that unpacks to far more than its size.",
    "Unpacking it fills memory or disk.",
    "Hand in the content unpacked.", ("CWE-409",),
)
LIMIT = ScanRule(
    "VET-210", "Limit", MEDIUM,
    "More than a scan reads: nested too deep, too many members, too large.",
    "What was not read may be anything.",
    "Hand in less at once, or unpacked.", ("CWE-400",),
)
UNREFERENCED = ScanRule(
    "VET-211", "Unreferenced", MEDIUM,
    "A member of a torch file to which nothing refers.",
    "Whatever it is for, it is not for the weights.",
    "Save the weights again with torch.save(model.state_dict()).", ("AML.T0015",),
)
POLYGLOT = ScanRule(
    "VET-212", "Polyglot", HIGH,
    "The same bytes are two formats at once.",
    "A scanner that takes it for the one does not see the other.",
    "Write the file anew with a common tool.", ("AML.T0074", "AML.T0015", "CWE-436"),
)
TORCH_SCRIPT = ScanRule(
    "VET-301", "TorchScript", MEDIUM,
    "A TorchScript program.",
    "It holds code beside the weights, which can read and write files.",
    "Where the network was made, save torch.save(model.state_dict(), FILE) or export it with torch.onnx.export. "
    f"{SAFE}", ("AML.T0011.000", "CWE-94"),
)
EXPORTED_PROGRAM = ScanRule(
    "VET-302", "ExportedProgram", MEDIUM,
    "A program of torch.export (.pt2).",
    "Its loader unpickles constants and sample inputs, without restriction if it has to.",
    f"Export the weights or the graph. {SAFE}", ("AML.T0011.000", "CWE-502"),
)
KERAS_CODE = ScanRule(
    "VET-303", "KerasCode", HIGH,
    "A Keras model with code of its own: a Lambda layer, or a class or function from outside Keras.",
    "Loading it unmarshals bytecode, or imports and calls what it names.",
    f"Use standard layers only. {SAFE}", ("AML.T0011.000", "AML.T0018.002", "CWE-502"),
)
REMOTE_CODE = ScanRule(
    "VET-304", "RemoteCode", HIGH,
    "A configuration that asks its loader to run code of the repository.",
    "auto_map, custom pipelines and trust_remote_code have Python files imported on loading.",
    "Use an architecture of the library itself.", ("AML.T0011.000", "CWE-94"),
)
PYFUNC_CODE = ScanRule(
    "VET-305", "PyfuncCode", HIGH,
    "An MLflow model with a loader, code or Python model of its own.",
    "mlflow.pyfunc imports it when the model is loaded.",
    "Log the model as ONNX.", ("AML.T0011.000", "CWE-94"),
)
CONFIG_CALL = ScanRule(
    "VET-306", "ConfigCall", CRITICAL,
    "A configuration that calls Python: a YAML tag or a target.",
    "Loaders of YAML, and of configurations with targets, import and call what these name.",
    "Write plain values only.", (*ARTIFACT, "CWE-502"),
)
CONFIG_TARGET = ScanRule(
    "VET-307", "ConfigTarget", MEDIUM,
    "A configuration that names classes to make, or whose names are spelt so that they cannot be compared.",
    "Hydra, skops and others import and call what is named.",
    "Write plain values only.", ("CWE-470",),
)
TEMPLATE = ScanRule(
    "VET-308", "Template", HIGH,
    "A template that reaches for the inside of Python.",
    "Chat templates are run by Jinja; attributes such as __globals__ lead out of it.",
    "Remove it.", (*ARTIFACT, "CWE-1336"),
)
SOURCE_CODE = ScanRule(
    "VET-309", "SourceCode", MEDIUM,
    "Source code beside a model.",
    "Whether it is run, and what it does, nobody has judged.",
    "Hand in data only.", ("AML.T0011.000", "CWE-94"),
)
PROGRAM = ScanRule(
    "VET-310", "Program", HIGH,
    "Machine code, bytecode or a library.",
    "A model needs none.",
    "Hand in data only.", (*ARTIFACT, "CWE-506"),
)
FOREIGN_OPERATOR = ScanRule(
    "VET-401", "ForeignOperator", MEDIUM,
    "An ONNX graph with operators of a domain that onnxruntime does not bring.",
    "They are run by a library that has to be loaded beside the model.",
    "Export with standard operators only.", ("AML.T0018.001", "CWE-829"),
)
CONTROL_FLOW = ScanRule(
    "VET-402", "ControlFlow", MEDIUM,
    "An ONNX graph with subgraphs (If, Loop, Scan).",
    "Which part of it runs depends on the input: a place for a backdoor.",
    "Export without control flow.", ("AML.T0018.001",),
)
EXTERNAL_DATA = ScanRule(
    "VET-403", "ExternalData", MEDIUM,
    "An ONNX file whose weights are in another file, which was not scanned with it or holds something else as well.",
    "What was scanned is not what is loaded.",
    "Scan its whole directory, or save all weights inside the file.", ("CWE-829",),
)
UNKNOWN = ScanRule(
    "VET-501", "Unknown", MEDIUM,
    "Content that is of no known format.",
    "What is not understood is not clean.",
    SAFE, ("AML.T0011.000",),
)
UNREAD = ScanRule(
    "VET-502", "Unread", MEDIUM,
    "A file that could not be read, or nothing to scan.",
    "What was not read is not clean.",
    "Make it readable, or name another path.", ("AML.T0011.000",),
)
UNFINISHED = ScanRule(
    "VET-503", "Unfinished", MEDIUM,
    "The reader did not finish: out of time or memory, or it failed.",
    "A file that stops its reader is not clean.",
    SAFE, (*BROKEN, "CWE-400"),
)
PARTLY_READ = ScanRule(
    "VET-504", "PartlyRead", MEDIUM,
    "A format that is searched for code, and not understood to its last byte.",
    "The search found nothing, which is no proof.",
    SAFE, ("AML.T0011.000",),
)
MASQUERADE = ScanRule(
    "VET-505", "Masquerade", MEDIUM,
    "A file of another format than its name says.",
    "Scanners that go by names look for the wrong things.",
    "Name it by what it is.", ("AML.T0074", "CWE-646"),
)
# fmt: on
RULES = {rule.id: rule for rule in list(globals().values()) if isinstance(rule, ScanRule)}
