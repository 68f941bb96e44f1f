"""Files that attack their reader, by name: of every format and wrapper that is read, and every bypass that is known.

A value is the bytes of a file, or the files of a directory by their names. What holds a payload would touch `marker`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from tests.vetgate.scan.assembled import (
    Payload,
    called,
    imported,
    storage_id,
    tarred,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    touching,
    zipped,
)

Made = bytes | Mapping[str, bytes]
# what a pickle may name instead of os.system: none of it is on any short list, and all of it runs code
GADGETS = """
os system / posix system / nt system / subprocess Popen / subprocess getoutput / builtins eval / builtins exec
builtins __import__ / builtins getattr / builtins compile / __builtin__ eval / importlib import_module
importlib._bootstrap _call_with_frames_removed / runpy _run_code / pty spawn / webbrowser open / pkgutil resolve_name
operator attrgetter / operator methodcaller / functools partial / torch.utils.collect_env run / torch.hub load
torch.serialization load / torch.storage _load_from_bytes / torch.jit load / torch.utils.cpp_extension load
torch._dynamo.guards GuardBuilder.get / torch._inductor.codecache compile_file / multiprocessing.util spawnv_passfds
multiprocessing.process BaseProcess / _posixsubprocess fork_exec / _osx_support _read_output / _pyrepl.pager pipe_pager
_aix_support _read_cmd_output / pip main / pip._internal main / code InteractiveInterpreter / codeop compile_command
timeit timeit / cProfile run / profile run / trace Trace.run / pdb run / bdb Bdb.run / doctest debug_script
idlelib.pyshell ModifiedInterpreter.runcommand / idlelib.run Executive.runcode / lib2to3.pgen2.pgen ParserGenerator
numpy.testing._private.utils runstring / numpy.f2py.crackfortran getlincoef / numpy.distutils.exec_command exec_command
asyncio.unix_events _UnixSubprocessTransport._start / http.server CGIHTTPRequestHandler / ctypes CDLL
ctypes.util _findLib_gcc / shutil rmtree / socket create_connection / urllib.request urlopen / smtplib SMTP
sqlite3 connect / ssl get_server_certificate / logging.config dictConfig / uuid _get_command_stdout
distutils.file_util write_file / venv create / ensurepip _run_pip / zipimport zipimporter / requests get
xmlrpc.client ServerProxy / types CodeType / types FunctionType / marshal loads / pickle loads / dill loads
cloudpickle loads / joblib load / pandas read_pickle / pandas.io.pickle read_pickle / yaml unsafe_load
sys modules / sys settrace / site execsitecustomize / gc get_objects / inspect getmodule / linecache updatecache
torch.fx.graph_module _deserialize_graph_module / torch.package PackageImporter / jinja2 Template
builtins str.__class__.__base__ / torch os.system / numpy os.system / collections abc.sys.modules
collections OrderedDict.__reduce__.__self__ / functools partial.__call__ / pathlib os.system / somewhere anything
sklearn.svm._classes SVC / numpy.load load / torch.load load
"""


def gadgets() -> list[tuple[str, str]]:
    """Module and name of each."""
    pairs = [entry.split() for line in GADGETS.strip().splitlines() for entry in line.split(" / ")]
    return [(module, name) for module, name in pairs]


def malicious(marker: Path) -> dict[str, Made]:
    """All of them."""
    command = touching(marker)
    found: dict[str, Made] = {f"gadget-{m}-{n}.pkl": called(m, n, command) for m, n in gadgets()}
    return found | _pickles(command) | _archives(command) | _zip_tricks(command) | _torch(command) | _others(command)


def _pickles(command: str) -> dict[str, Made]:
    plain = called("os", "system", command)
    system = text("os") + text("system")
    arguments = text(command) + b"\x85"
    found: dict[str, Made] = {
        f"protocol-{number}.pkl": pickle.dumps(Payload(os.system, command), number) for number in range(6)
    }
    ordered = imported("collections", "OrderedDict") + b")R"
    return found | {
        "named.pt": plain,
        "named.bin": plain,
        "named.safetensors": plain,
        "named.png": plain,
        "no-extension": plain,
        "text.txt": f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        "text-inst.md": f"(S'{command}'\nios\nsystem\n.".encode(),
        "stack-global.pkl": b"\x80\x04" + system + b"\x93" + arguments + b"R.",
        "stack-global-memo.pkl": b"\x80\x04" + text("os") + b"\x940" + text("system") + b"\x940h\x00h\x01\x93"
        + arguments + b"R.",
        "stack-global-memo-overwritten.pkl": b"\x80\x04" + text("collections") + b"q\x050" + text("os") + b"q\x050"
        + text("system") + b"q\x060h\x05h\x06\x93" + arguments + b"R.",
        "stack-global-dup.pkl": b"\x80\x04" + system + b"2\x930" + system + b"\x93" + arguments + b"R.",
        "stack-global-short-string.pkl": b"\x80\x04U\x02osU\x06system\x93" + arguments + b"R.",
        "stack-global-text-string.pkl": b"\x80\x04S'o\\x73'\nS'system'\n\x93" + arguments + b"R.",
        "stack-global-escaped.pkl": b"\x80\x04V\\u006fs\nVsystem\n\x93" + arguments + b"R.",
        "stack-global-computed.pkl": b"\x80\x04" + imported("_codecs", "encode") + text("os") + text("latin1")
        + b"\x86R" + text("system") + b"\x93" + arguments + b"R.",
        "stack-global-popped-mark.pkl": b"\x80\x04" + text("os") + b"(" + text("collections") + b"1" + text("system")
        + b"\x93" + arguments + b"R.",
        "inst.pkl": b"(" + text(command) + b"ios\nsystem\n.",
        "obj.pkl": b"(" + imported("os", "system") + text(command) + b"o.",
        "obj-popped.pkl": b"(" + imported("os", "system") + text(command) + b"o0N.",
        "new.pkl": b"\x80\x02" + imported("os", "system") + arguments + b"\x81.",
        "new-keywords.pkl": b"\x80\x04" + imported("subprocess", "Popen") + arguments + b"}\x92.",
        "extension-1.pkl": b"\x80\x02\x82\x01" + arguments + b"R.",
        "extension-4.pkl": b"\x80\x02\x84\x01\x00\x00\x00" + arguments + b"R.",
        "build-ordered.pkl": b"\x80\x02" + ordered + b"}" + text("__class__") + imported("os", "system") + b"sb.",
        "build-setstate.pkl": b"\x80\x02" + imported("os", "system") + b"}" + text("x") + text(command) + b"sb.",
        "popped.pkl": b"\x80\x02" + imported("os", "system") + arguments + b"R0N.",
        "popped-import.pkl": b"\x80\x02" + imported("antigravity", "fly") + b"0N.",
        "deep.pkl": b"\x80\x02" + b"]" * 500 + plain[2:-1] + b"a" * 500 + b".",
        "memo-then-call.pkl": b"\x80\x02" + imported("os", "system") + b"q\x000}h\x00" + arguments + b"Rq\x010.",
        "odd-numbers-first.pkl": b"I010\n0I1_0\n0Fx\n0L\n0Nq\x000g00\n0" + plain[2:],
        "no-text-first.pkl": b"X\x01\0\0\0\xff0S'\\x'\n0" + plain[2:],
        "memo-by-text.pkl": b"Vos\np010\n0Vsystem\np-0\n0g10\ng0\n\x93" + arguments + b"R.",
        "long-text-called.pkl": b"\x80\x02" + text("x" * 100_000) + arguments + b"R.",
        "long-text-of-an-import.pkl": b"\x80\x04" + text("x" * 100_000) + text("y") + b"\x93.",
        "no-stop.pkl": plain[:-1],
        "junk-tail.pkl": plain + b"\xff\xfe\x00junk",
        "junk-instead-of-stop.pkl": plain[:-1] + b"\xff\xfejunk",
        "bad-opcode-after.pkl": plain[:-1] + b"\x00.",
        "underflow-after.pkl": plain[:-1] + b"000000.",
        "second.pkl": pickle.dumps({"weights": 1}) + plain,
        "third-after-text.pkl": pickle.dumps("one", 0) + pickle.dumps([2], 0) + plain[2:],
        "many-then-one.pkl": pickle.dumps(None) * 200 + plain,
        "frame-too-short.pkl": b"\x80\x04\x95\x03" + bytes(7) + plain[2:],
        "frame-too-long.pkl": plain[:-1] + b"\x95\xff\xff" + bytes(6) + b".",
        "persistent-first.pkl": b"\x80\x02" + text("weights") + b"Q0" + plain[2:],
        "long-string-first.pkl": b"\x80\x02" + text("x" * 100_000) + b"0" + plain[2:],
        "protocol-in-the-middle.pkl": b"N0\x80\x05" + plain[2:],
        "ordered-of-a-call.pkl": b"\x80\x02" + imported("collections", "OrderedDict")
        + imported("builtins", "iter") + b"\x85R.",
        "rebuild-with-a-call.pkl": b"\x80\x02" + imported("torch._utils", "_rebuild_tensor_v2") + arguments + b"R.",
        "reconstruct-of-another-class.pkl": b"\x80\x02" + imported("numpy.core.multiarray", "_reconstruct")
        + imported("subprocess", "Popen") + b"K\x00\x85" + text("b") + b"\x87R.",
        "reconstruct-of-an-import.pkl": b"\x80\x02" + imported("numpy.core.multiarray", "_reconstruct")
        + imported("collections", "OrderedDict") + b"K\x00\x85" + text("b") + b"\x87R.",
        "allowed-as-value.pkl": b"\x80\x02}" + text("x") + imported("torch._utils", "_rebuild_tensor_v2") + b"s.",
        "codec-of-another-kind.pkl": b"\x80\x02" + imported("_codecs", "encode") + text("x") + text("zip") + b"\x86R.",
        "bytearray-of-a-size.pkl": b"\x80\x03" + imported("builtins", "bytearray") + b"J\xff\xff\xff\x7f\x85R.",
        "storage-called.pkl": b"\x80\x02" + imported("torch", "FloatStorage") + b"J\xff\xff\xff\x7f\x85R.",
    }  # fmt: skip


def _archives(command: str) -> dict[str, Made]:
    plain = called("os", "system", command)
    clean = pickle.dumps({"a": 1})
    return {
        "pickle.zip": zipped({"model.pkl": plain}),
        "pickle-deflated.zip": zipped({"model.pkl": plain}, 8),
        "pickle-bzipped.zip": zipped({"model.pkl": plain}, 12),
        "pickle-without-name.zip": zipped({"weights/0": plain, "README.md": b"weights\n"}),
        "zip-in-zip.zip": zipped({"inner.zip": zipped({"inner.zip": zipped({"a": plain}, 8)})}),
        "zip-in-tar.tar": tarred({"inner.zip": zipped({"a": plain})}),
        "pickle.tar": tarred({"model.pkl": plain}),
        "pickle.tar.gz": tarred({"model.pkl": plain}, "w:gz"),
        "pickle.tar.bz2": tarred({"model.pkl": plain}, "w:bz2"),
        "pickle.tar.xz": tarred({"model.pkl": plain}, "w:xz"),
        "tar-after-its-end.tar": tarred({"a.pkl": clean}) + plain,
        "tar-up.tar": tarred({"../../etc/cron.d/job": b"text\n"}),
        "tar-absolute.tar": tarred({"/etc/cron.d/job": b"text\n"}),
        "tar-link-up.tar": tarred({"a.txt": b"text\n"}, links={"b": "../../../etc/passwd"}),
        "python_model.pkl.gz": gzip.compress(plain),
        "two-members.gz": gzip.compress(clean) + gzip.compress(plain),
        "after-the-stream.gz": gzip.compress(clean) + plain,
        "after-the-stream.bz2": bz2.compress(clean) + plain,
        "pickle.bz2": bz2.compress(plain),
        "pickle.xz": lzma.compress(plain),
        "pickle.lzma": lzma.compress(plain, lzma.FORMAT_ALONE),
        "joblib.z": zlib.compress(plain),
        "gz-in-gz.gz": gzip.compress(gzip.compress(bz2.compress(plain))),
        "object.npy": _npy(plain),
        "object.npz": zipped({"a.npy": _npy(plain)}),
        "object-field.npy": _npy(plain, "[('a', '<f4'), ('b', 'O')]"),
        "after-the-array.npy": _npy(bytes(16), "'<f4'") + plain,
        "mlflow": {
            "MLmodel": b"flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n",
            "model.pkl": plain,
        },
    }


def _npy(data: bytes, descr: str = "'|O'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (4,), }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def _zip_tricks(command: str) -> dict[str, Made]:
    plain = called("os", "system", command)
    zip_file = zipped({"model.pkl": plain})
    clean = zipped({"notes.txt": b"notes\n"})
    local, central = 0, zip_file.index(b"PK\x01\x02")

    def patched(*changes: tuple[int, bytes]) -> bytes:
        made = bytearray(zip_file)
        for at, new in changes:
            made[at : at + len(new)] = new
        return bytes(made)

    # a member that stands in front of the directory, and that it does not list
    hidden = zip_file[:central]
    end = clean.index(b"PK\x05\x06")
    offset = struct.unpack("<I", clean[end + 16 : end + 20])[0]
    moved = struct.pack("<I", offset + len(hidden))
    return {
        "encrypted-flag.zip": patched((local + 6, b"\x01"), (central + 8, b"\x01")),
        "encrypted-flag-in-directory.zip": patched((central + 8, b"\x01")),
        "wrong-crc.zip": patched((local + 14, b"\0\0\0\0"), (central + 16, b"\0\0\0\0")),
        "crc-differs.zip": patched((central + 16, b"\1\2\3\4")),
        "name-differs.zip": patched((local + 30, b"notes.txt")),
        "method-differs.zip": patched((central + 10, b"\x08")),
        "size-differs.zip": patched((central + 24, struct.pack("<I", 2))),
        "packed-size-differs.zip": patched((central + 20, struct.pack("<I", 2))),
        "unknown-method.zip": patched((local + 8, b"\x63"), (central + 10, b"\x63")),
        "hidden-member.zip": clean[:offset] + hidden + clean[offset : end + 16] + moved + clean[end + 20 :],
        "no-directory.zip": hidden,
        "before.zip": plain + zip_file,
        "after.zip": clean + plain,
        "after.png": b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", bytes(13)) + _chunk(b"IEND", b"") + plain,
        "comment.zip": clean[:-2] + struct.pack("<H", len(plain)) + plain,
        "up.zip": zipped({"../../etc/cron.d/job": b"text\n"}),
        "absolute.zip": zipped({"/etc/cron.d/job": b"text\n"}),
        "drive.zip": zipped({"C:/job.txt": b"text\n"}),
        "backslash-up.zip": zipped({"..\\..\\job.txt": b"text\n"}),
        "directory-with-bytes.zip": zipped({"a/": plain}),
        "entry-count.zip": zip_file[:-12] + b"\0\0" + zip_file[-10:],
        "two-ends.zip": clean[:end] + hidden + clean[end:],
        "safetensors-and-zip.safetensors": _safetensors() + zip_file,
        "safetensors-and-pickle.safetensors": _safetensors_and_pickle(command),
        "text-and-zip.txt": b"notes\n" + zip_file,
        "pickle-and-zip.bin": pickle.dumps({"a": 1}) + zip_file,
    }


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _safetensors() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def _safetensors_and_pickle(command: str) -> bytes:
    """safetensors whose length is the opcode of a text, after which a second one reaches into the data."""
    size = ord("X") + 256 * 5
    data = b"\n" + called("os", "system", command)[2:]
    header = json.dumps({"V": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).ljust(size)
    return struct.pack("<Q", size) + header.encode() + data


def _torch(command: str) -> dict[str, Made]:
    plain = called("os", "system", command)
    clean = b"\x80\x02}."
    weights = b"\x80\x02}" + text("w") + tensor() + b"s."
    numbers = np.arange(4, dtype="<f4").tobytes()
    module, whole, legacy = torch.nn.Linear(2, 2), io.BytesIO(), io.BytesIO()
    torch.save(module, whole)
    torch.save(module, legacy, _use_new_zipfile_serialization=False)
    named = {"data/weights/weight_0": bytes(16), "archive_format": b"pt2", "models/model.json": b"{}\n"}
    return {
        "data-pkl.pt": torch_zip(plain),
        "data-pkl.bin": torch_zip(weights[:-1] + b"0" + plain[2:], {"data/0": numbers}),
        "hidden-pickle.pt": torch_zip(clean, {"data.pkl.orig": plain}),
        "hidden-storage.pt": torch_zip(clean, {"data/7": plain}),
        "storage-is-a-pickle.pt": torch_zip(
            b"\x80\x02}"
            + text("w")
            + imported("torch._utils", "_rebuild_tensor_v2")
            + b"(("
            + text("storage")
            + imported("torch", "ByteStorage")
            + text("0")
            + text("cpu")
            + b"K"
            + bytes([len(plain)])
            + b"tQK\x00K\x01\x85K\x01\x85\x89"
            + imported("collections", "OrderedDict")
            + b")RtRs.",
            {"data/0": plain},
        ),
        "version-is-a-pickle.pt": torch_zip(clean, {".data/serialization_id": plain}),
        "after-the-pickle.pt": torch_zip(clean + plain),
        "short-storage.pt": torch_zip(weights, {"data/0": numbers[:8]}),
        "long-storage.pt": torch_zip(weights, {"data/0": numbers + plain}),
        "out-of-bounds.pt": torch_zip(
            b"\x80\x02}" + text("w") + tensor(shape=b"M\xff\xff\x85") + b"s.", {"data/0": numbers}
        ),
        "offset-out-of-bounds.pt": torch_zip(
            b"\x80\x02}" + text("w") + tensor(offset=b"K\x08") + b"s.", {"data/0": numbers}
        ),
        "storage-as-a-value.pt": torch_zip(b"\x80\x02" + imported("torch", "FloatStorage") + b"."),
        "persistent-call.pt": torch_zip(b"\x80\x02" + storage_id()[:-1] + imported("os", "system") + b"\x86Q."),
        "whole-module.pt": whole.getvalue(),
        "whole-module-legacy.pt": legacy.getvalue(),
        "legacy.pt": torch_legacy(plain),
        "legacy-tail.pt": torch_legacy(clean) + plain,
        "legacy-tar.pt": tarred({"pickle": plain, "storages": b"", "tensors": b"", "sys_info": clean}),
        "script-constants.pt": torch_zip(clean, {"constants.pkl": plain, "code/__torch__.py": b"pass\n"}),
        "constants.pt2": zipped({f"model/{k}": v for k, v in (named | {"data/constants/constant_0": plain}).items()}),
        "sample-inputs.pt2": zipped(
            {f"model/{k}": v for k, v in (named | {"data/sample_inputs/model.pt": torch_zip(plain)}).items()}
        ),
        "two-roots.pt": zipped({"archive/data.pkl": clean, "other/data.pkl": plain}),
    }


def _keras(layer: Mapping[str, object]) -> bytes:
    model = {"class_name": "Sequential", "module": "keras", "registered_name": None, "config": {"layers": [layer]}}
    return zipped({"metadata.json": b'{"keras_version": "3.0"}', "config.json": json.dumps(model).encode()})


def _onnx(location: str) -> bytes:
    weights = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    value = helper.make_tensor_value_info("x", 1, [1])
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [value], [weights])
    made: bytes = onnx.ModelProto(ir_version=8, graph=graph).SerializeToString()
    return made


def _others(command: str) -> dict[str, Made]:
    foreign = {"class_name": "Popen", "module": "subprocess", "registered_name": None, "config": {}}
    function = {"class_name": "function", "module": "keras.utils", "config": "get_file", "registered_name": "get_file"}
    lambdas = {"class_name": "Lambda", "module": "keras.layers", "config": {"function": {"class_name": "__lambda__"}}}
    hdf5 = b"\x89HDF\r\n\x1a\n" + bytes(700) + b'{"class_name": "Lambda", "config": {"function": ["4wEA", null]}}'
    return {
        "lambda.keras": _keras(lambdas),
        "foreign.keras": _keras(foreign),
        "function.keras": _keras({"class_name": "Dense", "module": "keras.layers", "config": {"activation": function}}),
        "registered.keras": _keras(
            {"class_name": "Own", "module": "keras.layers", "registered_name": "pkg>Own", "config": {}}
        ),
        "torch-wrapper.keras": _keras(
            {"class_name": "TorchModuleWrapper", "module": "keras.layers", "config": {"module": "UEsDBA=="}}
        ),
        "vocabulary.keras": _keras(
            {"class_name": "StringLookup", "module": "keras.layers", "config": {"vocabulary": "/etc/passwd"}}
        ),
        "builtins.keras": _keras({"class_name": "eval", "module": "builtins", "config": {}}),
        "lambda.h5": hdf5,
        "lambda-escaped.h5": hdf5.replace(b"Lambda", b"\\u004cambda"),
        "lambda-model.json": json.dumps({"class_name": "Model", "config": {"layers": [lambdas]}}).encode(),
        "tag.yaml": f'a: !!python/object/apply:os.system ["{command}"]\n'.encode(),
        "tag-verbatim.yaml": f'!<tag:yaml.org,2002:python/object/apply:os.system> ["{command}"]\n'.encode(),
        "tag-escaped.yaml": f'- !!pyth%6Fn/object/apply:os.system ["{command}"]\n'.encode(),
        "tag-directive.yaml": f'%TAG ! tag:yaml.org,2002:pyth\n---\n!on/object/apply:os.system ["{command}"]'.encode(),
        "target.yaml": f"model:\n  _target_: os.system\n  command: {command}\n".encode(),
        "target.json": json.dumps({"model": {"_target_": "subprocess.Popen", "args": command}}).encode(),
        "jsonpickle.json": json.dumps({"py/reduce": [{"py/function": "os.system"}, {"py/tuple": [command]}]}).encode(),
        "remote": {"config.json": json.dumps({"auto_map": {"AutoModel": "modeling.Net"}}).encode()},
        "trust.yaml": b"model: net\ntrust_remote_code: true\n",
        "escaped-key.json": b'{"auto\\u005fmap": {"AutoModel": "modeling.Net"}}',
        "key-twice.json": b'{"auto_map": {"AutoModel": "modeling.Net"}, "auto_map": {}}',
        "template.json": json.dumps({"chat_template": "{{ cycler.__init__.__globals__.os.popen('id') }}"}).encode(),
        "pyfunc-loader": {"MLmodel": b"flavors:\n  python_function:\n    loader_module: my_loader\n"},
        "pyfunc-model": {
            "MLmodel": b"flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"
            b"    python_model: python_model.pkl\n"
        },
        "pyfunc-code": {
            "MLmodel": b"flavors:\n  python_function:\n    code: code\n    loader_module: mlflow.onnx\n"
        },
        "program": b"\x7fELF\x02\x01\x01" + bytes(100),
        "program.exe": b"MZ" + bytes(100),
        "library.zip": zipped({"lib/net.so": b"\x7fELF\x02\x01\x01" + bytes(100)}),
        "external-up.onnx": _onnx("../../../etc/passwd"),
        "external-absolute.onnx": _onnx("/etc/passwd"),
    }  # fmt: skip
