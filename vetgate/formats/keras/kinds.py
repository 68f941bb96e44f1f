"""Every class of layers that is read, and what its configuration may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vetgate.formats.keras.activations import NAMES, finish
from vetgate.formats.keras.channels import (
    batch_norm,
    dense,
    leaky_relu,
    normalization,
    relu,
    rescaling,
    softmax_layer,
)
from vetgate.formats.keras.layer import Kind, Layer
from vetgate.formats.keras.moves import concatenate, elementwise, flatten, idle, reshape
from vetgate.formats.keras.network import Network, Value
from vetgate.formats.keras.windows import conv, depthwise, global_pool, pool, separable, zero_padding


def image(net: Network, layer: Layer) -> Value:
    """The images; refused where the layer says another shape than the submission."""
    shape = layer.config.get("batch_shape", layer.config.get("batch_input_shape"))
    given = shape[1:] if isinstance(shape, list) and len(shape) == 4 else None
    if given is None or any(one is not None and one != size for one, size in zip(given, net.image.shape, strict=True)):
        raise layer.wrong(f"images {net.image.shape} of height, width and channels, as input_shape says", shape)
    return net.image


Fixed = Mapping[str, tuple[Any, ...]]
LAST: Fixed = {"data_format": ("channels_last", None)}
PADDED: Fixed = {**LAST, "padding": ("valid", "same")}
ENDED: Fixed = {"activation": (*NAMES, None)}
CONV = ("kernel_size", "strides", "dilation_rate", "use_bias")
IDLE = (
    "Dropout", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "ActivityRegularization",
    "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast",
)  # fmt: skip
KINDS: dict[str, Kind] = {
    "InputLayer": Kind(
        image, ("batch_shape",), dict.fromkeys(("sparse", "ragged", "optional"), (False, None)), inputs=0
    ),
    "Conv2D": Kind(conv, (*CONV, "filters", "groups"), {**PADDED, **ENDED}, arrays=True),
    "DepthwiseConv2D": Kind(depthwise, (*CONV, "depth_multiplier"), {**PADDED, **ENDED}, arrays=True),
    "SeparableConv2D": Kind(
        separable, (*CONV, "filters", "depth_multiplier"), {**PADDED, **ENDED, "groups": (1,)}, arrays=True
    ),
    "Dense": Kind(
        dense, ("units", "use_bias"), {**ENDED, "quantization_config": (None,), "lora_rank": (None,)}, arrays=True
    ),
    "BatchNormalization": Kind(
        batch_norm,
        ("axis", "scale", "center", "epsilon"),
        {"renorm": (False,), "renorm_clipping": (None,), "fused": (None, True, False), "virtual_batch_size": (None,)},
        arrays=True,
    ),
    "Rescaling": Kind(rescaling, ("scale", "offset")),
    "Normalization": Kind(normalization, ("axis", "mean", "variance"), {"invert": (False,)}, arrays=True),
    "Activation": Kind(finish, (), ENDED),
    "ReLU": Kind(relu, ("max_value", "negative_slope", "threshold")),
    "LeakyReLU": Kind(leaky_relu, ("alpha", "negative_slope")),
    "Softmax": Kind(softmax_layer, ("axis",)),
    "MaxPooling2D": Kind(pool("MaxPool"), ("pool_size", "strides"), PADDED),
    "AveragePooling2D": Kind(pool("AveragePool"), ("pool_size", "strides"), PADDED),
    "GlobalAveragePooling2D": Kind(global_pool("GlobalAveragePool"), ("keepdims",), LAST),
    "GlobalMaxPooling2D": Kind(global_pool("GlobalMaxPool"), ("keepdims",), LAST),
    "ZeroPadding2D": Kind(zero_padding, ("padding",), LAST),
    "Flatten": Kind(flatten, (), LAST),
    "Reshape": Kind(reshape, ("target_shape",)),
    "Add": Kind(elementwise("Add"), inputs=None),
    "Multiply": Kind(elementwise("Mul"), inputs=None),
    "Concatenate": Kind(concatenate, ("axis",), inputs=None),
    **dict.fromkeys(IDLE, Kind(idle, arrays=True, idle=True)),
}
