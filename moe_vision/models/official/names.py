# SPDX-License-Identifier: Apache-2.0
"""The names that a pickle may refer to. None of them is ever imported or called on its behalf."""

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # the old names that protocol 2 writes

import torch

# The type of a storage says what its bytes are.
STORAGE_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
REBUILT = {
    "builtins.frozenset",
    "builtins.set",
    "collections.OrderedDict",
    "copyreg._reconstructor",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
}
# Harmless things that trainers store beside a network; what is made of them says nothing about it.
ASIDE = {
    "_codecs.encode",
    "builtins.object",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.device",
    *(f"torch.{dtype}" for dtype in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")),
}
KNOWN_PACKAGES = {*sys.stdlib_module_names, "torch", "numpy"}


def allowed_name(module: str, name: str) -> str:
    """Return the full name, or raise ValueError unless a file of weights may refer to it.

    Args:
        module: Dotted name of the module.
        name: Name in the module.

    Raises:
        ValueError: If it is no container, no part of a tensor and no class of a layer; the message has the name.

    Examples:
        >>> from moe_vision.models.official.names import allowed_name
        >>> allowed_name("torch.nn.modules.conv", "Conv2d")
        'torch.nn.modules.conv.Conv2d'
        >>> allowed_name("os", "system")
        Traceback (most recent call last):
        ...
        ValueError: it refers to os.system, which no file of weights needs; nothing was run
    """
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full_name = f"{module}.{name}"
    if full_name in STORAGE_DTYPES or full_name in REBUILT or full_name in ASIDE or _is_layer_class(module, name):
        return full_name
    raise ValueError(f"it refers to {full_name}, which no file of weights needs; nothing was run")


def _is_layer_class(module: str, name: str) -> bool:
    """Tell whether a name is one of PyTorch's layers, or comes from a package of networks that we don't know.

    A stand-in takes its place, so no harm can come of a wrong answer.
    """
    package, *path = module.split(".")
    if not name.isidentifier():  # a dotted name would reach into a class
        return False
    if package in KNOWN_PACKAGES:
        return module.startswith("torch.nn.modules.")
    return package == "ultralytics" or "nn" in path
