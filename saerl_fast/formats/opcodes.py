"""A pickle read as data: its opcodes are walked, and nothing that they name is imported or called.

Only the opcodes that ``torch.save`` writes for tensors, numbers, words and containers are known. A name must be in
ALLOWED, and calling it only notes that it was called: what a call means is decided by the reader of the result.
Every other opcode, and every other name, is refused. Memory is bounded: a step of the walk makes one object.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from saerl_fast.errors import UnsafeFileError

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
"""torch's class of a storage -> dtype."""
ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("collections", "OrderedDict"),
    *(("torch", name) for name in STORAGES),
}
MAX_STEPS = 20_000
MAX_WORD = 4096


@dataclass(frozen=True)
class Name:
    """A global that the pickle names; it is never looked up."""

    module: str
    name: str


@dataclass
class Call:
    """A call that the pickle asks for; it is never made. state: what BUILD hands to its result."""

    function: Name
    arguments: tuple[Any, ...]
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """A reference out of the pickle: torch's way to name a storage."""

    value: Any


MARK = object()


def described(found: object) -> str:
    """A few words for a message; never the whole of a value, whose parts may stand in it any number of times."""
    if isinstance(found, Name):
        return f"{found.module}.{found.name}"[:200]
    if isinstance(found, Call):
        return f"call of {described(found.function)}"
    return repr(found)[:200] if isinstance(found, (str, int, float, type(None))) else type(found).__name__


def read_opcodes(raw: bytes, origin: str) -> Any:
    """What a pickle of protocol 2 stands for, with names, calls and storages left as Name, Call and Persistent.

    Raises UnsafeFileError for an opcode or a name that is not known, and for a stack that does not add up.
    """
    walk = _Walk(raw, origin)
    for _ in range(MAX_STEPS):
        code = walk.take(1)
        if code == b".":
            return walk.finish()
        step = _STEPS.get(code)
        if step is None:
            raise UnsafeFileError(
                f"{origin}: opcode {code!r} at byte {walk.at - 1} is not one that weights need; the file is refused"
            )
        step(walk)
    raise UnsafeFileError(f"{origin}: more than {MAX_STEPS} opcodes")


class _Walk:
    """The bytes, a stack, and the memo."""

    def __init__(self, raw: bytes, origin: str) -> None:
        self.raw, self.origin, self.at = raw, origin, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        found = self.raw[self.at : self.at + count]
        if len(found) < count:
            raise self.refuse("ends too early")
        self.at += count
        return found

    def number(self, form: str) -> int:
        (found,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(found)

    def line(self) -> str:
        end = self.raw.find(b"\n", self.at, self.at + MAX_WORD)
        if end < 0:
            raise self.refuse("has a name without an end")
        return self.word(end + 1 - self.at)[:-1]

    def word(self, count: int) -> str:
        if count > MAX_WORD:
            raise self.refuse(f"has a word of {count} bytes, more than the cap of {MAX_WORD}")
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse("has a word that is not UTF-8") from error

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise self.refuse("takes from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is MARK:
                found = self.stack[at + 1 :]
                del self.stack[at:]
                return found
        raise self.refuse("takes to a mark that is not there")

    def top(self, kind: type | tuple[type, ...]) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise self.refuse("fills something that is no container")
        return self.stack[-1]

    def put(self, slot: int) -> None:
        if not self.stack or self.stack[-1] is MARK:
            raise self.refuse("remembers nothing")
        self.memo[slot] = self.stack[-1]

    def get(self, slot: int) -> None:
        if slot not in self.memo:
            raise self.refuse(f"recalls slot {slot}, which holds nothing")
        self.stack.append(self.memo[slot])

    def finish(self) -> Any:
        found = self.pop()
        if self.stack or self.at != len(self.raw):
            raise self.refuse("has something left over at its end")
        return found

    def refuse(self, what: str) -> UnsafeFileError:
        return UnsafeFileError(f"{self.origin}: the pickle {what} (byte {self.at}); the file is refused")


def _protocol(walk: _Walk) -> None:
    if (version := walk.number("<B")) != 2:
        raise walk.refuse(f"is of protocol {version}, and torch.save writes 2;")


def _global(walk: _Walk) -> None:
    module, name = walk.line(), walk.line()
    if (module, name) not in ALLOWED:
        raise UnsafeFileError(
            f"{walk.origin}: the pickle names {module}.{name}, which weights do not need; the file is refused"
        )
    walk.stack.append(Name(module, name))


def _call(walk: _Walk) -> None:
    arguments, function = walk.pop(), walk.pop()
    if not isinstance(function, Name) or not isinstance(arguments, tuple) or function.module == "torch":
        raise walk.refuse("calls what cannot be called")
    walk.stack.append(Call(function, arguments))


def _build(walk: _Walk) -> None:
    state = walk.pop()
    walk.top(Call).state = state


def _long(walk: _Walk) -> None:
    size = walk.number("<B")
    if size > 8:
        raise walk.refuse(f"has a whole number of {size} bytes, more than the cap of 8")
    walk.stack.append(int.from_bytes(walk.take(size), "little", signed=True))


def _tuple(count: int) -> Callable[[_Walk], None]:
    def step(walk: _Walk) -> None:
        found = [walk.pop() for _ in range(count)]
        walk.stack.append(tuple(reversed(found)))

    return step


def _set_items(walk: _Walk, pairs: list[Any]) -> None:
    if len(pairs) % 2:
        raise walk.refuse("has a key without a value")
    target = walk.top((dict, Call))
    items = target.items if isinstance(target, Call) else target
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, (str, int)):
            raise walk.refuse("has a key that is neither a word nor a whole number")
        items[key] = value


def _push(value: Callable[[_Walk], Any]) -> Callable[[_Walk], None]:
    return lambda walk: walk.stack.append(value(walk))


def _set_one(walk: _Walk) -> None:
    value, key = walk.pop(), walk.pop()
    _set_items(walk, [key, value])


def _append_one(walk: _Walk) -> None:
    value = walk.pop()
    walk.top(list).append(value)


def _append_all(walk: _Walk) -> None:
    values = walk.pop_to_mark()
    walk.top(list).extend(values)


_STEPS: dict[bytes, Callable[[_Walk], None]] = {
    b"\x80": _protocol,
    b"(": _push(lambda _: MARK),
    b"}": _push(lambda _: {}),
    b"]": _push(lambda _: []),
    b")": _push(lambda _: ()),
    b"N": _push(lambda _: None),
    b"\x88": _push(lambda _: True),
    b"\x89": _push(lambda _: False),
    b"K": _push(lambda walk: walk.number("<B")),
    b"M": _push(lambda walk: walk.number("<H")),
    b"J": _push(lambda walk: walk.number("<i")),
    b"\x8a": _long,
    b"G": _push(lambda walk: struct.unpack(">d", walk.take(8))[0]),
    b"X": _push(lambda walk: walk.word(walk.number("<I"))),
    b"c": _global,
    b"Q": _push(lambda walk: Persistent(walk.pop())),
    b"R": _call,
    b"b": _build,
    b"q": lambda walk: walk.put(walk.number("<B")),
    b"r": lambda walk: walk.put(walk.number("<I")),
    b"h": lambda walk: walk.get(walk.number("<B")),
    b"j": lambda walk: walk.get(walk.number("<I")),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": lambda walk: walk.stack.append(tuple(walk.pop_to_mark())),
    b"s": _set_one,
    b"u": lambda walk: _set_items(walk, walk.pop_to_mark()),
    b"a": _append_one,
    b"e": _append_all,
}
