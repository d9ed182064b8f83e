# SPDX-License-Identifier: Apache-2.0
"""The weights of a file by name, and what a pickled network says besides: from ``.pt`` or ``.safetensors``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_vision.models.official.archive import TorchArchive
from moe_vision.models.official.unpickler import StandIn, StoredTensor

WRAPPERS = ("ema", "model", "state_dict", "model_state_dict")
# Bounds of a tree of modules, for a file in which a module holds itself.
MAX_MODULES = 20_000
MAX_PREFIX = 200


class Entry(NamedTuple):
    """A tensor that has not been read yet."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Weights:
    """What a file says about a network.

    Args:
        entries: The tensors by their names.
        class_names: The attribute ``names`` of a pickled network, whatever it holds.
        attributes: Attributes of each pickled module, by the module's name with a dot at its end.
        ignored: Names of what is no tensor.
    """

    entries: dict[str, Entry]
    class_names: object = None
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@contextmanager
def open_weights(path: str | Path) -> Iterator[Weights]:
    """Open a file whose tensors can be read inside the ``with``.

    Args:
        path: A ``.safetensors``, or a file of ``torch.save`` under any other name.

    Raises:
        ValueError: If it can't be read, or holds neither a network nor a state_dict.

    Examples:
        >>> import tempfile, torch
        >>> from moe_vision.models.official.weights import open_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": torch.nn.Linear(3, 2).state_dict()}, f"{folder}/weights.pt")
        ...     with open_weights(f"{folder}/weights.pt") as weights:
        ...         {name: entry.shape for name, entry in weights.entries.items()}
        {'weight': (2, 3), 'bias': (2,)}
    """
    if Path(path).suffix == ".safetensors":
        with _open_safetensors(path) as file:
            yield _from_safetensors(file)
    else:
        with TorchArchive(path) as archive:
            yield _from_archive(archive)


def _open_safetensors(path: str | Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it is truncated or no safetensors file ({error})") from error


def _from_safetensors(file: Any) -> Weights:
    if (file.metadata() or {}).get("format", "").startswith("moe_vision"):
        raise ValueError("it is a checkpoint of moe_vision, which load_checkpoint reads")
    names = list(file.keys())
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return Weights({name: Entry(shapes[name], partial(file.get_tensor, name)) for name in names})


def _from_archive(archive: TorchArchive) -> Weights:
    network = _find_network(archive.root)
    if isinstance(network, StandIn):
        return _from_module(network, archive)
    entries = {name: _entry(value, archive) for name, value in network.items() if isinstance(value, StoredTensor)}
    return Weights(entries, ignored=tuple(str(name) for name in network if name not in entries))


def _find_network(root: object) -> StandIn | dict[str, Any]:
    """Return the pickled network or the state_dict: what the file holds, or under a usual key of it."""
    for _ in WRAPPERS:
        if isinstance(root, StandIn):
            return root
        if not isinstance(root, dict):
            break
        inner = [root[key] for key in WRAPPERS if isinstance(root.get(key), dict | StandIn)]
        if not inner:
            break
        root = inner[0]
    if isinstance(root, dict) and any(isinstance(value, StoredTensor) for value in root.values()):
        return {str(name): value for name, value in root.items()}
    raise ValueError(f"it must hold a network or a state_dict, alone or under one of the keys {', '.join(WRAPPERS)}")


def _from_module(network: StandIn, archive: TorchArchive) -> Weights:
    """Collect what ``network.state_dict()`` would, were it a module."""
    entries, attributes = {}, {}
    for prefix, module in _modules(network):
        state = _state(module)
        skipped = state.get("_non_persistent_buffers_set") or ()
        attributes[prefix] = {name: value for name, value in state.items() if not name.startswith("_")}
        for name, value in {**_table(state, "_parameters"), **_table(state, "_buffers")}.items():
            if isinstance(value, StoredTensor) and name not in skipped:
                entries[f"{prefix}{name}"] = _entry(value, archive)
    return Weights(entries, attributes[""].get("names"), attributes)


def _modules(network: StandIn) -> Iterator[tuple[str, StandIn]]:
    """Walk the tree of modules."""
    waiting = [("", network)]
    for _ in range(MAX_MODULES):
        if not waiting:
            return
        prefix, module = waiting.pop()
        if len(prefix) > MAX_PREFIX:
            break
        yield prefix, module
        children = _table(_state(module), "_modules")
        waiting += [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(child, StandIn)]
    raise ValueError("its modules are nested without end")


def _state(module: StandIn) -> dict[str, Any]:
    if not isinstance(module.state, dict) or "_modules" not in module.state:
        raise ValueError(f"its {module.class_name} is no network")
    return module.state


def _table(state: dict[str, Any], name: str) -> dict[str, Any]:
    table = state.get(name)
    return table if isinstance(table, dict) else {}


def _entry(stored: StoredTensor, archive: TorchArchive) -> Entry:
    return Entry(stored.shape, partial(archive.tensor, stored))
