"""The network of a Hugging Face folder: built by transformers from plain settings, with exactly the folder's weights.

transformers is an extra, imported in the sandbox only, with no way to the hub; no code of a folder is ever imported.
What it builds is exported, and what is vetted is the ONNX graph that vetgate writes of that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vetgate.errors import NotUnderstood
from vetgate.formats.networks.export import exported
from vetgate.formats.optional import import_builder
from vetgate.formats.safetensors_file import inspect_safetensors
from vetgate.formats.submission import Submission

FILE = "config.json"
SUFFIX = "ForImageClassification"
# each was held against transformers' own output
TYPES = {
    "beit": "Beit", "convnext": "ConvNext", "convnextv2": "ConvNextV2", "deit": "DeiT",
    "hgnet_v2": "HGNetV2", "levit": "Levit", "mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2",
    "mobilevit": "MobileViT", "poolformer": "PoolFormer", "regnet": "RegNet", "resnet": "ResNet",
    "swiftformer": "SwiftFormer", "vit": "ViT",
}  # fmt: skip
# other code, other arithmetic, other weights than those of the folder
REFUSED = (
    "auto_map", "trust_remote_code", "custom_pipelines", "quantization_config", "attn_implementation",
    "_attn_implementation", "backbone",
)  # fmt: skip
SAVED = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "id2label")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY")
LARGEST = 1 << 16
INSTEAD = "hand in an ONNX graph, exported with torch.onnx.export"


def check_config(fields: Mapping[str, Any], submission: Submission) -> None:
    """Hold `config.json` against what is known and what the submission says; raises NotUnderstood."""
    code = [key for key in REFUSED if fields.get(key) not in (None, False, "eager", "sdpa")]
    if code:
        raise NotUnderstood(
            f"expected settings of a network only in {FILE}, got {', '.join(code)}, which bring code or weights of "
            f"their own; {INSTEAD}"
        )
    kind = fields.get("model_type")
    if kind not in TYPES or fields.get("architectures") != [TYPES[kind] + SUFFIX]:
        raise NotUnderstood(
            f"expected one of {', '.join(name + SUFFIX for name in TYPES.values())} in {FILE}, got model_type "
            f"{str(kind)[:40]!r}, architectures {str(fields.get('architectures'))[:80]}; {INSTEAD}"
        )
    if fields.get("problem_type") not in (None, "single_label_classification"):
        raise NotUnderstood(f"expected one label an image in {FILE}, got {fields['problem_type']!r}; {INSTEAD}")
    _check_labels(fields, submission)


def labels_of(fields: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes in order; None where there are none, or not one for each number."""
    given = fields.get("id2label")
    if not isinstance(given, dict) or set(given) != {str(n) for n in range(len(given))}:
        return None
    return [str(given[str(n)]) for n in range(len(given))]


def to_onnx(fields: Mapping[str, Any], weights: bytes, submission: Submission) -> bytes:
    """The network of these settings and weights as an ONNX file; raises NotUnderstood."""
    return exported(_Logits(_network(fields, weights, submission)), submission)


def _check_labels(fields: Mapping[str, Any], submission: Submission) -> None:
    names = labels_of(fields)
    if names is None or len(names) != submission.n_classes:
        raise NotUnderstood(
            f"expected id2label of {submission.n_classes} classes, from 0 on, in {FILE}, got "
            f"{'none' if names is None else len(names)}; correct classes in submission.yaml or save the model again"
        )
    if not isinstance(submission.classes, int) and list(submission.classes) != names:
        differing = [pair for pair in zip(submission.classes, names, strict=True) if pair[0] != pair[1]]
        raise NotUnderstood(
            f"expected the classes of submission.yaml as id2label in {FILE} says, got {differing[:3]}; correct one"
        )


def _network(fields: Mapping[str, Any], weights: bytes, submission: Submission) -> nn.Module:
    transformers = _transformers()
    inspect_safetensors(weights)
    loaded = safetensors.torch.load(weights)
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in loaded.items()}
    config = _config(transformers, fields, submission)
    build = getattr(transformers, TYPES[fields["model_type"]] + SUFFIX)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build(config).parameters())
    given = sum(tensor.numel() for tensor in tensors.values())
    if size > given:  # nothing is allocated for settings that the weights do not bear out
        raise NotUnderstood(f"expected {size} weights as {FILE} says, got {given}; hand in the file that belongs to it")
    model, info = build.from_pretrained(
        None, config=config, state_dict=tensors, output_loading_info=True, dtype=torch.float32, local_files_only=True,
    )  # fmt: skip
    wrong = {what: sorted(map(str, names))[:5] for what, names in info.items() if names}
    if wrong:
        raise NotUnderstood(f"expected exactly the weights of {type(model).__name__}, got {wrong}; save it again")
    network: nn.Module = model
    return network.eval()


def _transformers() -> Any:
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    transformers: Any = import_builder("transformers", "huggingface")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _config(transformers: Any, fields: Mapping[str, Any], submission: Submission) -> Any:
    kind = transformers.CONFIG_MAPPING[fields["model_type"]]
    known = set(kind().to_dict()) | set(SAVED)
    odd = [key for key, value in fields.items() if key not in known and value not in (None, False)]
    large = [key for key, value in fields.items() if not _modest(value)]
    if odd or large:
        raise NotUnderstood(
            f"expected the settings of {fields['model_type']} in {FILE}, got {(odd + large)[:8]}; {INSTEAD}"
        )
    config = kind.from_dict({key: value for key, value in fields.items() if key in known and key not in REFUSED})
    if config.num_channels != submission.input_shape[0]:
        raise NotUnderstood(
            f"expected {submission.input_shape[0]} channels as input_shape says, got num_channels "
            f"{config.num_channels} in {FILE}; correct input_shape"
        )
    config._attn_implementation = "eager"
    return config


def _modest(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= LARGEST and all(map(_modest, value))
    return not isinstance(value, int | float) or abs(value) <= LARGEST


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=x).logits
        return logits
