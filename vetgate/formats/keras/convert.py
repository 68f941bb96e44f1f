"""From a Keras file to an ONNX file: every layer checked first, so that all that is missing is named at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vetgate.errors import NotUnderstood
from vetgate.formats.keras.activations import SINCE_3
from vetgate.formats.keras.files import KerasFile, layers_of, name_of, read_file
from vetgate.formats.keras.hdf5 import ADVICE
from vetgate.formats.keras.kinds import KINDS
from vetgate.formats.keras.layer import Layer
from vetgate.formats.keras.network import Network, Value
from vetgate.formats.submission import Submission

MODULES = re.compile(r"(tensorflow\.)?keras(\.src)?(\.(layers|models|engine)(\.\w+)*)?")
MODELS = ("Sequential", "Functional", "Model")
# how it was and will be trained; what is computed does not depend on it
NEUTRAL = re.compile(
    r"name|trainable|dtype|autocast|batch_input_shape|seed|momentum|synchronized|activity_regularizer|"
    r"\w+_(initializer|regularizer|constraint)|renorm_\w+"
)
CALL = {"training": (None, False), "mask": (None,)}
MAX_LAYERS = 5_000
BYTES = (255, 127.5)
MAX_SHOWN = 20
INSTEAD = "hand in an ONNX graph, which tf2onnx and keras' model.export(..., format='onnx') write"


@dataclass(frozen=True)
class _Call:
    layer: str
    node: int
    inputs: tuple[tuple[str, int], ...]


def to_onnx(data: bytes, submission: Submission) -> tuple[bytes, str]:
    """The ONNX file of a Keras file, whose nodes are called like the layers, and its output that holds the logits.

    Raises NotUnderstood.
    """
    file = read_file(data)
    described = layers_of(file.config)
    _check(file, described)
    layers = {
        name_of(each): Layer(name_of(each), each["class_name"], each["config"], file.weights.get(name_of(each), ()))
        for each in described
    }
    net = Network(submission.input_shape)
    if file.config["class_name"] == "Sequential":
        calls, outputs = _chain(list(layers.values()))
    else:
        calls, outputs = _graph(described), _outputs(file.config["config"])
    made = _run(net, layers, calls, outputs)
    chosen = submission.output or (outputs[0][0] if len(outputs) == 1 else None)
    if chosen not in made:
        raise NotUnderstood(
            f"expected one output, or one that submission.yaml names as `output`, got {list(made)[:8]}; name the layer"
        )
    return net.to_bytes(made.values()), made[chosen].name


def said(data: bytes) -> dict[str, Any]:
    """What a Keras file says of the images that it takes and of its classes, as fields of `submission.yaml`."""
    described = layers_of(read_file(data).config)
    shape, classes, fields = None, None, dict[str, Any]()
    for each in described:
        config = each["config"] if isinstance(each.get("config"), dict) else {}
        given = config.get("batch_shape", config.get("batch_input_shape"))
        if isinstance(given, list) and len(given) == 4 and shape is None:
            shape = [given[3], given[1], given[2]]
        # what is divided by 255, or by half of it, goes up to 255
        if each.get("class_name") == "Rescaling" and shape and any(_is(config.get("scale"), 1 / n) for n in BYTES):
            fields = {"normalization": {"mean": [0.0] * shape[0], "std": [round(1 / 255, 9)] * shape[0]}}
        classes = config.get("units", classes) if each.get("class_name") == "Dense" else classes
    whole = shape is not None and all(isinstance(side, int) for side in shape)
    return {"input_shape": shape if whole else None, "classes": classes, **(fields if whole else {})}


def _is(value: Any, other: float) -> bool:
    return isinstance(value, float) and math.isclose(value, other, rel_tol=1e-4)


def _check(file: KerasFile, described: Sequence[Mapping[str, Any]]) -> None:
    wrong = [*_odd_object(file.config, MODELS)]
    if len(described) > MAX_LAYERS:
        raise NotUnderstood(f"expected at most {MAX_LAYERS} layers, got {len(described)}; {INSTEAD}")
    names = [name_of(each) for each in described]
    if len(set(names)) < len(names):
        raise NotUnderstood(f"expected layers with names of their own, got one twice; {ADVICE}")
    for each in described:
        wrong += [f"{text} in layer {name_of(each)!r}" for text in _odd_layer(each, file.version)]
    if wrong:
        raise NotUnderstood(
            f"expected a Keras model of layers that map exactly, got {'; '.join(wrong[:MAX_SHOWN])}"
            f"{f' and {len(wrong) - MAX_SHOWN} more' if len(wrong) > MAX_SHOWN else ''}; {INSTEAD}. "
            f"Known: {', '.join(KINDS)}"
        )


def _odd_object(given: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    kind, module, registered = given.get("class_name"), given.get("module"), given.get("registered_name")
    if kind not in known:
        yield f"the class {kind!r}"
    if module is not None and (not isinstance(module, str) or not MODULES.fullmatch(module)):
        yield f"code of the module {module!r}"
    if registered not in (None, kind):
        yield f"the class registered as {registered!r}"


def _odd_layer(given: Mapping[str, Any], version: str) -> Iterator[str]:
    yield from _odd_object(given, tuple(KINDS))
    kind, config = given.get("class_name"), given["config"]
    if (dtype := _dtype(config.get("dtype"))) not in (None, "float32"):
        yield f"numbers of {dtype!r}"
    known = KINDS.get(str(kind))
    if known is None:
        return
    fixed = known.fixed
    for key, value in config.items() if not known.idle else ():
        if key in fixed and not any(type(value) is type(one) and value == one for one in fixed[key]):
            yield f"{key} {str(value)[:80]!r}"
        elif key not in fixed and key not in known.keys and not NEUTRAL.fullmatch(key):
            yield f"the setting {key!r}"
    if config.get("activation") in SINCE_3 and not version.startswith("3."):
        yield f"{config['activation']} of Keras {version or 'of an unknown version'}"


def _dtype(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("config", {}).get("name") if isinstance(value.get("config"), dict) else "an odd type"
    return value


def _chain(layers: Sequence[Layer]) -> tuple[list[_Call], list[tuple[str, int]]]:
    calls = [
        _Call(layer.name, 0, ((before.name, 0),) if before else ())
        for before, layer in zip([None, *layers], layers, strict=False)
    ]
    if not calls:
        raise NotUnderstood(f"expected a model with layers, got none; {ADVICE}")
    return calls, [(layers[-1].name, 0)]


def _graph(described: Sequence[Mapping[str, Any]]) -> list[_Call]:
    calls = []
    for each in described:
        nodes = each.get("inbound_nodes", [])
        if not isinstance(nodes, list):
            raise NotUnderstood(f"expected the inputs of layer {name_of(each)!r}, got {str(nodes)[:80]}; {ADVICE}")
        if each["class_name"] == "InputLayer":
            calls.append(_Call(name_of(each), 0, ()))
            continue
        calls += [_Call(name_of(each), place, _inputs(node, name_of(each))) for place, node in enumerate(nodes)]
    return calls


def _inputs(node: Any, name: str) -> tuple[tuple[str, int], ...]:
    """The layers, and which of their calls, that a call takes."""
    if isinstance(node, dict):  # Keras 3
        args, kwargs = node.get("args"), node.get("kwargs", {})
        args = args[0] if isinstance(args, list) and len(args) == 1 and isinstance(args[0], list) else args
        found = [_history(arg) for arg in args] if isinstance(args, list) else []
    else:
        entries = node if isinstance(node, list) else []
        entries = [entries] if entries and isinstance(entries[0], str) else entries
        sound = all(isinstance(entry, list) and 3 <= len(entry) <= 4 for entry in entries)
        found = [entry[:3] for entry in entries] if sound else []
        kwargs = {}
        for entry in entries if sound else ():
            kwargs |= entry[3] if len(entry) == 4 and isinstance(entry[3], dict) else {}
    given = kwargs.items() if isinstance(kwargs, dict) else [("its settings", kwargs)]
    odd = {key: value for key, value in given if key not in CALL or value not in CALL[key]}
    if odd or not found or not all(_is_history(each) for each in found):
        raise NotUnderstood(
            f"expected layer {name!r} to be called with the outputs of others only, got {str(odd or node)[:120]}; "
            f"{INSTEAD}"
        )
    return tuple((each[0], each[1]) for each in found)


def _history(arg: Any) -> Any:
    config = arg.get("config") if isinstance(arg, dict) and arg.get("class_name") == "__keras_tensor__" else None
    return config.get("keras_history") if isinstance(config, dict) else None


def _is_history(each: Any) -> bool:
    return isinstance(each, list) and [type(one) for one in each] == [str, int, int] and each[2] == 0


def _outputs(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    if len(_named(config.get("input_layers"))) != 1:
        raise NotUnderstood(f"expected a model of one input, got {config.get('input_layers')!s:.120}; {INSTEAD}")
    found = [(each[0], each[1]) for each in _named(config.get("output_layers"))]
    if not found or len({name for name, _ in found}) < len(found):
        raise NotUnderstood(f"expected outputs of layers, got {config.get('output_layers')!s:.120}; {INSTEAD}")
    return found


def _named(value: Any) -> list[list[Any]]:
    found = [value] if _is_history(value) else value
    found = list(found.values()) if isinstance(found, dict) else found
    return [each for each in found if _is_history(each)] if isinstance(found, list) else []


def _run(
    net: Network, layers: Mapping[str, Layer], calls: Sequence[_Call], outputs: Sequence[tuple[str, int]]
) -> dict[str, Value]:
    done: dict[tuple[str, int], Value] = {}
    left = list(calls)
    while left:
        ready = [call for call in left if all(source in done for source in call.inputs)]
        if not ready:
            raise NotUnderstood(f"expected layers that follow one another, got a cycle at {left[0].layer!r}; {ADVICE}")
        for call in ready:
            done[call.layer, call.node] = _build(net, layers[call.layer], [done[source] for source in call.inputs])
        left = [call for call in left if (call.layer, call.node) not in done]
    if any(done.get(output, net.image) == net.image for output in outputs):
        raise NotUnderstood(f"expected outputs that layers compute, got {list(outputs)[:8]}; {ADVICE}")
    return {output[0]: done[output] for output in outputs}


def _build(net: Network, layer: Layer, inputs: Sequence[Value]) -> Value:
    kind, before = KINDS[layer.kind], len(net.nodes)
    # a Sequential model need not name its input
    given = inputs or ([net.image] if kind.inputs == 1 else [])
    if len(given) != kind.inputs if kind.inputs is not None else len(given) < 2:
        raise layer.wrong(f"{'two or more' if kind.inputs is None else kind.inputs} inputs", len(given))
    if layer.arrays and not kind.arrays:
        raise layer.wrong("no arrays", [array.shape for array in layer.arrays])
    made = kind.build(net, layer, *given)
    if len(net.nodes) > before:
        net.call_last(layer.name)
    return made
