"""Reads the pickles in PyTorch's files as data: nothing is imported, called or built.

Python's unpickler is not used, not even with a ``find_class`` that refuses names: it hashes any values that a file
holds (endlessly nested tuples, colliding numbers), and each of its opcodes can build objects. The reader here is a loop
over bytes in memory. It does not recurse, does not hash values, and resolves no names. The memory of each step is
proportional to the bytes that the step consumes, and the number of steps is bounded, so time and memory are bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from msconv_jax.torch_weights.pickled import (
    FUNCTIONS,
    KNOWN,
    STORAGES,
    GlobalName,
    IgnoredObject,
    PickledDict,
    describe,
)
from msconv_jax.torch_weights.records import Storage, Tensor, WeightFileError, damaged, escape_text

MAX_BYTES = 1 << 26
_MAX_STEPS = 1 << 20  # some 20,000 tensors; at most a few seconds and 100 MiB
_MAX_LINE = 1 << 10


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _old_text(data: bytes) -> str:  # a str of Python 2 may hold any bytes
    return data.decode("utf-8", "surrogateescape")


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


_STOP = ord(".")


class Unpickler:
    """Reads consecutive pickles from bytes.

    Attributes:
        position: position of the first unread byte.
        storages: the storages that the pickles refer to, by key.
    """

    def __init__(self, data: bytes):
        self.position = 0
        self.storages: dict[str, Storage] = {}
        self._data = data
        self._steps = 0
        self._stack: list = []
        self._outer: list[list] = []  # the stacks below each mark
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """Reads the next pickle.

        Returns:
            None, numbers, strings, bytes, tuples and lists unchanged; dicts as :class:`PickledDict`, tensors as
            :class:`Tensor`, names as :class:`GlobalName` and other values as :class:`IgnoredObject`.

        Raises:
            WeightFileError: if the pickle is damaged or too long, or names anything that no state dict needs.
        """
        self._stack, self._outer, self._memo = [], [], {}
        while (opcode := self._take(1)[0]) != _STOP:
            self._count(1)
            if opcode in _REFUSED:
                raise WeightFileError(
                    f"its pickle holds {_REFUSED[opcode]}, which torch.save does not write; do not trust it."
                )
            if opcode not in _ACTIONS:
                raise damaged(f"byte {self.position - 1} of its pickle is not an opcode: {opcode:#04x}")
            _ACTIONS[opcode](self)
        return self._pop()

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise WeightFileError(f"its pickle takes more than {_MAX_STEPS} steps; save model.state_dict() alone.")

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self.position:
            raise damaged(f"its pickle ends too early, or is longer than {MAX_BYTES} bytes")
        self.position += size
        return self._data[self.position - size : self.position]

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + _MAX_LINE)
        if end < 0:
            raise damaged("a line in its pickle has no end")
        return self._take(end + 1 - self.position)[:-1].decode("utf-8", "replace")

    def _top(self) -> object:
        if not self._stack:
            raise damaged("its pickle uses a value that it has not created")
        return self._stack[-1]

    def _pop(self) -> object:
        value = self._top()
        self._stack.pop()
        return value

    def _pop_to_mark(self) -> list:
        if not self._outer:
            raise damaged("its pickle ends a group that it has not begun")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _tuple(self, items: list) -> None:
        self._stack.append(tuple(items))

    def _short_tuple(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self._stack.append(tuple(items[::-1]))

    def _number(self, size: int, signed: bool = False) -> None:
        self._stack.append(int.from_bytes(self._take(size), "little", signed=signed))

    def _counted(self, size: int, decode: Callable[[bytes], object]) -> None:
        """Reads a value whose length stands before it, in `size` bytes."""
        content = self._take(int.from_bytes(self._take(size), "little"))
        try:
            self._stack.append(decode(content))
        except UnicodeDecodeError as error:
            raise damaged("a text in its pickle is not UTF-8") from error

    def _integer(self) -> None:  # old protocols write False and True as "00" and "01"
        line = self._line()
        try:
            self._stack.append(line == "01" if line in ("00", "01") else int(line.removesuffix("L")))
        except ValueError as error:
            raise damaged("a number in its pickle has characters other than digits") from error

    def _float(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def _get(self, size: int) -> None:
        index = int.from_bytes(self._take(size), "little")
        if index not in self._memo:
            raise damaged(f"its pickle recalls value {index}, which it has not stored")
        self._stack.append(self._memo[index])

    def _put(self, size: int) -> None:
        self._memo[int.from_bytes(self._take(size), "little")] = self._top()

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _append(self, items: list) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, IgnoredObject):
            raise damaged(f"its pickle appends to {describe(target)}")

    def _set_items(self, items: list) -> None:
        target = self._top()
        if len(items) % 2 or not isinstance(target, PickledDict | IgnoredObject):
            raise damaged(f"its pickle sets {len(items)} keys and values of {describe(target)}")
        if isinstance(target, PickledDict):
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))

    def _frozen_set(self, items: list) -> None:
        del items
        self._stack.append(IgnoredObject("builtins.frozenset"))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _name(self, module: object, name: object) -> GlobalName:
        """The record of a name that a weight file may hold; refuses any other name."""
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is not a str"
        if full not in KNOWN:
            raise WeightFileError(
                f"its pickle names {escape_text(full)}, which no state_dict needs. Nothing was run. If you trust the "
                "file, open it with PyTorch and save model.state_dict() alone, best as safetensors."
            )
        return KNOWN[full]

    def _global(self) -> None:
        module = self._line()
        self._stack.append(self._name(module, self._line()))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(self._name(module, name))

    def _call(self, function: object, arguments: object) -> None:
        if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
            raise damaged(f"its pickle calls {describe(function)} with {describe(arguments)}")
        if arguments and isinstance(arguments[0], list):  # repeated calls may copy one list into many dicts
            self._count(len(arguments[0]))
        action = FUNCTIONS.get(function.name)
        self._stack.append(action(arguments) if action else IgnoredObject(function.name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    def _new_object_with_names(self) -> None:
        self._pop()
        self._reduce()

    def _object(self) -> None:
        function, *arguments = self._pop_to_mark() or [None]
        self._call(function, tuple(arguments))

    def _instance(self) -> None:
        module = self._line()
        function = self._name(module, self._line())
        self._call(function, tuple(self._pop_to_mark()))

    def _build(self) -> None:  # drops attributes, such as a state dict's _metadata
        self._pop()
        target = self._top()
        if not isinstance(target, PickledDict | Tensor | IgnoredObject):
            raise damaged(f"its pickle sets attributes of {describe(target)}")

    def _storage(self) -> None:
        match self._pop():
            case ("storage", GlobalName() as kind, str() as key, _, int() as numel, *view) if kind.name in STORAGES:
                if view not in ([], [None]):
                    raise WeightFileError(
                        "its storages are views of other storages, as in old releases of PyTorch; open it with PyTorch "
                        "and save it again."
                    )
                found = self.storages.setdefault(key, Storage(key, STORAGES[kind.name], numel))
                if (found.dtype, found.numel) != (STORAGES[kind.name], numel):
                    raise damaged(f"storage {escape_text(key)} has two sizes or types")
                self._stack.append(found)
            case _:
                raise damaged("its pickle has a persistent id that is not a storage")


_ACTIONS: dict[int, Callable[[Unpickler], object]] = {
    0x80: lambda self: self._take(1),  # the protocol's number and a frame's length are not needed
    0x95: lambda self: self._take(8),
    ord("N"): lambda self: self._stack.append(None),
    0x88: lambda self: self._stack.append(True),
    0x89: lambda self: self._stack.append(False),
    ord("K"): lambda self: self._number(1),
    ord("M"): lambda self: self._number(2),
    ord("J"): lambda self: self._number(4, signed=True),
    0x8A: lambda self: self._counted(1, _signed),
    0x8B: lambda self: self._counted(4, _signed),
    ord("I"): Unpickler._integer,
    ord("L"): Unpickler._integer,
    ord("G"): Unpickler._float,
    0x8C: lambda self: self._counted(1, _text),
    ord("X"): lambda self: self._counted(4, _text),
    0x8D: lambda self: self._counted(8, _text),
    ord("U"): lambda self: self._counted(1, _old_text),
    ord("T"): lambda self: self._counted(4, _old_text),
    ord("C"): lambda self: self._counted(1, bytes),
    ord("B"): lambda self: self._counted(4, bytes),
    0x8E: lambda self: self._counted(8, bytes),
    0x96: lambda self: self._counted(8, bytes),
    ord("("): Unpickler._mark,
    ord("0"): Unpickler._pop,
    ord("1"): Unpickler._pop_to_mark,
    ord("h"): lambda self: self._get(1),
    ord("j"): lambda self: self._get(4),
    ord("q"): lambda self: self._put(1),
    ord("r"): lambda self: self._put(4),
    0x94: Unpickler._memoize,
    ord(")"): lambda self: self._stack.append(()),
    0x85: lambda self: self._short_tuple(1),
    0x86: lambda self: self._short_tuple(2),
    0x87: lambda self: self._short_tuple(3),
    ord("t"): lambda self: self._tuple(self._pop_to_mark()),
    ord("]"): lambda self: self._stack.append([]),
    ord("a"): lambda self: self._append([self._pop()]),
    ord("e"): lambda self: self._append(self._pop_to_mark()),
    ord("}"): lambda self: self._stack.append(PickledDict([])),
    ord("s"): Unpickler._set_item,
    ord("u"): lambda self: self._set_items(self._pop_to_mark()),
    0x8F: lambda self: self._stack.append(IgnoredObject("builtins.set")),
    0x90: lambda self: self._append(self._pop_to_mark()),
    0x91: lambda self: self._frozen_set(self._pop_to_mark()),
    ord("c"): Unpickler._global,
    0x93: Unpickler._stack_global,
    ord("R"): Unpickler._reduce,
    0x81: Unpickler._reduce,
    0x92: Unpickler._new_object_with_names,
    ord("o"): Unpickler._object,
    ord("i"): Unpickler._instance,
    ord("b"): Unpickler._build,
    ord("Q"): Unpickler._storage,
}
_REFUSED = {
    **{ord(code): "a string or a list of protocol 0" for code in "SVFPgpld"},
    **dict.fromkeys((0x82, 0x83, 0x84), "a class of the extension registry"),
    **dict.fromkeys((0x97, 0x98), "an out-of-band buffer"),
    ord("2"): "a duplicated value",
}
