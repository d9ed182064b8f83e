# SPDX-License-Identifier: Apache-2.0
"""Read a pickle without running it.

`pickle.Unpickler` imports what a file names and calls what it finds; this reader has neither ability. Python's
`pickletools` splits the file into its instructions, and the few that a file of weights is made of act on plain data:
tensors are described, not loaded; objects become stand-ins that hold their state; sets become lists, so that nothing
of the file is hashed but text and small numbers. All else is refused. Time and memory grow with the length of the
pickle alone.
"""

import math
import pickletools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from moe_vision.models.official.names import STORAGE_DTYPES, allowed_name


class Name(str):
    """A name that a pickle refers to, such as ``collections.OrderedDict``: text, never the thing itself."""

    __slots__ = ()


class Storage(NamedTuple):
    """Where values lie in the file: under a key, so many of a type."""

    key: str
    dtype: torch.dtype
    numel: int


class StoredTensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False, repr=False, slots=True)
class StandIn:
    """What stands for an object: the name of its class and its state, without any behaviour."""

    class_name: str
    state: object = None


@contextmanager
def damage_is_value_error() -> Iterator[None]:
    """Turn whatever a damaged file makes a reader raise into ValueError.

    Examples:
        >>> from moe_vision.models.official.unpickler import damage_is_value_error
        >>> with damage_is_value_error():
        ...     [][0]
        Traceback (most recent call last):
        ...
        ValueError: it is truncated or damaged (IndexError: list index out of range)
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"it is truncated or damaged ({type(error).__name__}: {error})") from error


class Unpickler:
    """One pickle on its way to plain data.

    Args:
        data: The pickle.
        storage_bytes: Number of bytes that the file holds of each storage.

    Raises:
        ValueError: If the pickle is damaged, refers to a name that no file of weights needs, or declares a tensor that
            the file does not hold.

    Examples:
        >>> import pickle
        >>> from moe_vision.models.official.unpickler import Unpickler
        >>> Unpickler(pickle.dumps({"epoch": 3, "names": ["cat", "dog"]}), {}).load()
        {'epoch': 3, 'names': ['cat', 'dog']}
        >>> Unpickler(pickle.dumps(eval), {}).load()
        Traceback (most recent call last):
        ...
        ValueError: it refers to builtins.eval, which no file of weights needs; nothing was run
    """

    def __init__(self, data: bytes, storage_bytes: Mapping[str, int]) -> None:
        self._data = data
        self._storage_bytes = storage_bytes
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> object:
        """Return what the pickle holds."""
        with damage_is_value_error():  # such as instructions that don't fit together
            for opcode, argument, _ in pickletools.genops(self._data):
                self._step(opcode.name, argument)
            return self._stack.pop()

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _ARGUMENT_ITSELF:
            self._stack.append(argument)
        elif opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _NEW:
            self._stack.append(_NEW[opcode]())
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in _NOTHING_TO_DO:
            raise ValueError(f"its pickle has the instruction {opcode}, which no file of weights needs")

    # Building blocks of the instructions.

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise IndexError("too few values")
        start = len(self._stack) - count
        values, self._stack[start:] = self._stack[start:], []
        return values

    def _pop_to_mark(self) -> list[Any]:
        return self._pop(len(self._stack) - self._marks.pop())

    def _push_tuple(self, values: list[Any]) -> None:
        self._stack.append(tuple(values))

    def _extend(self, values: list[Any]) -> None:
        container = self._stack[-1]
        if not isinstance(container, StandIn):  # an object's items say nothing about the network
            container.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        container = self._stack[-1]
        if len(values) % 2:
            raise TypeError("a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int) or (type(key) is int and abs(key) >= 2**31):
                raise ValueError(f"its keys must be text or small numbers, got {type(key).__name__}")
            if not isinstance(container, StandIn):
                container[key] = value

    def _refer(self, module: str, name: str) -> None:
        self._stack.append(Name(allowed_name(module, name)))

    def _make(self, _: None) -> None:
        """Make what a name and its arguments stand for; that is all that "calling" comes to."""
        name, arguments = self._pop(2)
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise TypeError("only a name can be called")
        rebuild = _REBUILD.get(name)
        self._stack.append(StandIn(name) if rebuild is None else rebuild(*arguments))

    def _set_state(self, _: None) -> None:
        (state,) = self._pop(1)
        if isinstance(self._stack[-1], StandIn):  # the attributes of a container say nothing about the network
            self._stack[-1].state = state

    def _refer_to_storage(self, _: None) -> None:
        ((kind, name, key, _location, numel),) = self._pop(1)
        if kind != "storage" or not isinstance(key, str) or type(numel) is not int:
            raise TypeError("not a storage")
        dtype = STORAGE_DTYPES[name]
        held = self._storage_bytes.get(key, 0)
        if numel * dtype.itemsize != held:
            raise ValueError(f"it declares {numel} values of {dtype} in storage {key!r}, which has {held} bytes")
        self._stack.append(Storage(key, dtype, numel))


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or any(type(number) is not int for number in numbers):
        raise TypeError("not a tensor")
    if len(shape) != len(stride) or len(shape) > 8:
        raise TypeError("not a tensor")
    numel = math.prod(shape)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min(numbers) < 0 or numel > storage.numel or (numel and last >= storage.numel):
        raise ValueError(
            f"it declares a tensor of shape {shape}, stride {stride} and offset {offset} in a storage of "
            f"{storage.numel} values"
        )
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _empty_dict(*items: object) -> dict[Any, Any]:
    if any(items):
        raise TypeError("dictionaries are filled item by item")
    return {}


def _same(items: Any) -> Any:
    if not isinstance(items, list | tuple):
        raise TypeError("not items")
    return items


def _object(name: object, *_: object) -> StandIn:
    if not isinstance(name, Name):
        raise TypeError("not a class")
    return StandIn(name)


# What a call makes; copies nothing, lest a small file fill the memory. Anything else becomes a stand-in.
_REBUILD: dict[str, Callable[..., Any]] = {
    "builtins.frozenset": _same,
    "builtins.set": _same,
    "collections.OrderedDict": _empty_dict,
    "copyreg._reconstructor": _object,
    "torch.Size": _same,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
}

# The instructions of a pickle that are known.
_NOTHING_TO_DO = {"PROTO", "FRAME", "STOP"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_TUPLE": tuple}
_ARGUMENT_ITSELF = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_ACTIONS: dict[str, Callable[[Unpickler, Any], object]] = {
    "MARK": lambda self, _: self._marks.append(len(self._stack)),
    "POP": lambda self, _: self._pop(1),
    "TUPLE": lambda self, _: self._push_tuple(self._pop_to_mark()),
    "TUPLE1": lambda self, _: self._push_tuple(self._pop(1)),
    "TUPLE2": lambda self, _: self._push_tuple(self._pop(2)),
    "TUPLE3": lambda self, _: self._push_tuple(self._pop(3)),
    "FROZENSET": lambda self, _: self._stack.append(self._pop_to_mark()),
    "APPEND": lambda self, _: self._extend(self._pop(1)),
    "APPENDS": lambda self, _: self._extend(self._pop_to_mark()),
    "ADDITEMS": lambda self, _: self._extend(self._pop_to_mark()),
    "SETITEM": lambda self, _: self._set_items(self._pop(2)),
    "SETITEMS": lambda self, _: self._set_items(self._pop_to_mark()),
    "BINPUT": lambda self, slot: self._memo.update({slot: self._stack[-1]}),
    "LONG_BINPUT": lambda self, slot: self._memo.update({slot: self._stack[-1]}),
    "MEMOIZE": lambda self, _: self._memo.update({len(self._memo): self._stack[-1]}),
    "BINGET": lambda self, slot: self._stack.append(self._memo[slot]),
    "LONG_BINGET": lambda self, slot: self._stack.append(self._memo[slot]),
    "GLOBAL": lambda self, names: self._refer(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda self, _: self._refer(*self._pop(2)),
    "NEWOBJ": Unpickler._make,
    "REDUCE": Unpickler._make,
    "BUILD": Unpickler._set_state,
    "BINPERSID": Unpickler._refer_to_storage,
}
