"""Reads a pickle stream as data: nothing is imported, looked up, called or made by it.

Containers become plain lists and tuples, everything that unpickling would call becomes a `Call`,
every name a `Global`. References by the memo stay references, so that what is one object in the
stream is one object here. The reader neither recurses nor trusts a length it is told.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import SnapshotDamagedError, SnapshotError
from ..collector import paused_gc
from .dense import rebuild_method
from .nodes import Call, FrozenItems, Global, Items, Pairs

MAX_STEPS = 40_000_000
"""Opcodes read at most; each makes at most one small object, which bounds memory too."""


def read_stream(
    data: bytes | bytearray | memoryview,
    *,
    buffers: Sequence[int] = (),
    max_steps: int = MAX_STEPS,
) -> tuple[list[Any], list[int]]:
    """Return what each pickle of a stream describes, and where each begins.

    Parameters
    ----------
    buffers
        Numbers of the buffers that the stream takes one after the other.
    max_steps
        Opcodes read at most.

    Raises
    ------
    SnapshotDamagedError
        If the stream is no row of whole pickles.
    SnapshotError
        If it has more than `max_steps` opcodes.
    """
    machine = _Machine(data, buffers)
    values, starts = [], []
    with paused_gc():
        try:
            while machine.position < len(machine.data):
                starts.append(machine.position)
                max_steps = machine.run(max_steps)
                values.append(machine.stack.pop())
                machine.stack.clear()
                machine.marks.clear()
        except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
            raise SnapshotDamagedError(
                f"the stream is no pickle at byte {machine.position} of {len(machine.data)} "
                f"({type(error).__name__}: {str(error)[:100]}); it was not opened"
            ) from None
    return values, starts


class _Machine:
    """The stack machine; opcodes and their names are those of the module `pickletools`."""

    def __init__(self, data: bytes | bytearray | memoryview, buffers: Sequence[int]) -> None:
        self.data = data if isinstance(data, bytes) else bytes(data)
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.buffers = iter(buffers)

    def run(self, max_steps: int) -> int:
        """Read one pickle, leave its value on the stack and return the steps that are left."""
        data, stack, marks, memo = self.data, self.stack, self.marks, self.memo
        position = self.position
        push = stack.append
        unpack_float = struct.Struct(">d").unpack_from
        unpack_int = struct.Struct("<i").unpack_from
        for step in range(max_steps):
            op = data[position]
            position += 1
            # The commonest first; the rest have a method each.
            if op == 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif op == 0x68:  # BINGET
                push(memo[data[position]])
                position += 1
            elif op == 0x6A:  # LONG_BINGET
                push(memo[int.from_bytes(data[position : position + 4], "little")])
                position += 4
            elif op == 0x4B:  # BININT1
                push(data[position])
                position += 1
            elif op == 0x8C:  # SHORT_BINUNICODE
                end = position + 1 + data[position]
                push(_text(data, position + 1, end))
                position = end
            elif op == 0x4D:  # BININT2
                push(data[position] | data[position + 1] << 8)
                position += 2
            elif op == 0x4A:  # BININT
                push(unpack_int(data, position)[0])
                position += 4
            elif op == 0x47:  # BINFLOAT
                push(unpack_float(data, position)[0])
                position += 8
            elif op == 0x28:  # MARK
                marks.append(len(stack))
            elif op == 0x5D:  # EMPTY_LIST
                push([])
            elif op == 0x7D:  # EMPTY_DICT
                push(Pairs())
            elif op == 0x86:  # TUPLE2
                stack[-2:] = [_exactly(stack, 2)]
            elif op == 0x4E:  # NONE
                push(None)
            elif op == 0x81:  # NEWOBJ
                arguments = stack.pop()
                stack[-1] = Call("new", stack[-1], arguments)
            elif op == 0x2E:  # STOP
                self.position = position
                if marks or len(stack) != 1:
                    raise ValueError("a value is left over")
                return max_steps - step - 1
            else:
                self.position = position
                _METHODS[op](self)
                position = self.position
        raise SnapshotError(
            "the stream has too many parts to be looked into; restore it to see them"
        )

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        start = self.position
        if count < 0 or count > len(self.data) - start:
            raise ValueError("it ends too early")
        self.position = start + count
        return self.data[start : self.position]

    def number(self, size: int) -> int:
        """Return the next `size` bytes as an unsigned number."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> bytes:
        """Return the bytes up to the end of the line."""
        start = self.position
        self.position = self.data.index(b"\n", start) + 1
        return self.data[start : self.position - 1]

    def marked(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        mark = self.marks.pop()
        found = self.stack[mark:]
        del self.stack[mark:]
        return found

    def extend(self, items: list[Any]) -> None:
        """Add `items` to the list, set or object on the stack."""
        target = self.stack[-1]
        if isinstance(target, Call):
            if target.items is None:
                target.items = items
            else:
                target.items.extend(items)
        elif type(target) in (list, Items):
            target.extend(items)
        else:
            raise TypeError("items for what has none")

    def update(self, pairs: list[Any]) -> None:
        """Set `pairs` in the dictionary or object on the stack."""
        target = self.stack[-1]
        if len(pairs) % 2:
            raise ValueError("a key without a value")
        if isinstance(target, Call):
            if target.pairs is None:
                target.pairs = pairs
            else:
                target.pairs.extend(pairs)
        elif type(target) is Pairs:
            target.extend(pairs)
        else:
            raise TypeError("keys for what has none")

    def replace(self, count: int, value: Any) -> None:
        """Put `value` in place of the `count` topmost values."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        del self.stack[len(self.stack) - count :]
        self.stack.append(value)

    def put(self, index: int) -> None:
        """Remember the topmost value under `index`."""
        self.memo[index] = self.stack[-1]

    def reduce(self) -> None:
        """Call what is on the stack; a call whose result is dropped at once sets a state."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if self.data[self.position] == _POP and type(arguments) is tuple and len(arguments) == 2:
            # Plain attributes say the same either way; which of them was written is no difference.
            plain = type(function) is Call and rebuild_method(function) == "attributes"
            _set_state(arguments[0], None if plain else function, arguments[1])
        self.stack[-1] = Call("reduce", function, arguments)

    def build(self) -> None:
        """Give the topmost object a state."""
        state = self.stack.pop()
        _set_state(self.stack[-1], None, state)

    def pop(self) -> None:
        """Drop the topmost value, or the mark if that is on top."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def new_with_keywords(self) -> None:
        """Call ``__new__`` with keywords."""
        _, arguments, keywords = _exactly(self.stack, 3)
        self.replace(3, Call("new", self.stack[-3], arguments, keywords))

    def old_object(self) -> None:
        """Call the class that lies below its arguments."""
        function, *arguments = self.marked()
        self.stack.append(Call("reduce", function, tuple(arguments)))

    def old_instance(self) -> None:
        """Call the class that is named in the stream."""
        function = Global(self.line().decode(), self.line().decode())
        self.stack.append(Call("reduce", function, tuple(self.marked())))

    def name(self) -> None:
        """Make a name from two strings on the stack."""
        module, name = _exactly(self.stack, 2)
        if type(module) is not str or type(name) is not str:
            raise TypeError("a name that is no text")
        self.replace(2, Global(module, name))

    def integer(self) -> None:
        """Read a number, or one of the two booleans, as text."""
        text = self.line()
        known = {b"00": False, b"01": True}
        self.stack.append(known[text] if text in known else int(text, 0))

    def quoted(self) -> None:
        """Read a string of Python 2 in quotes."""
        text = self.line()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise ValueError("a string without quotes")
        decoded: bytes = codecs.escape_decode(text[1:-1])[0]
        self.stack.append(decoded.decode("ascii"))

    def out_of_band(self) -> None:
        """Refer to the next buffer outside of the stream."""
        number = next(self.buffers, None)
        if number is None:
            raise ValueError("a buffer that the stream does not have")
        self.stack.append(Call("buffer", None, (number,)))


def _set_state(target: Any, setter: Any, state: Any) -> None:
    if not isinstance(target, (Call, Global)):
        if setter is None:
            raise TypeError("a state for what has none")
        return
    if target.states is None:
        target.states = []
    target.states.append((setter, state))


def _exactly(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise IndexError("the stack is empty")
    return tuple(stack[-count:])


def _text(data: bytes, start: int, end: int) -> str:
    if end > len(data):
        raise ValueError("it ends too early")
    return data[start:end].decode("utf-8", "surrogatepass")


def _pushing(read: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(read(machine))


def _sized(size: int, make: Callable[[bytes], Any]) -> Callable[[_Machine], None]:
    return _pushing(lambda machine: make(machine.take(machine.number(size))))


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_POP = 0x30
_METHODS: dict[int, Callable[[_Machine], object]] = {
    # numbers and constants
    0x88: _pushing(lambda machine: True),
    0x89: _pushing(lambda machine: False),
    0x49: _Machine.integer,
    0x4C: _pushing(lambda machine: int(machine.line().rstrip(b"L"), 0)),
    0x8A: _sized(1, _signed),
    0x8B: _sized(4, _signed),
    0x46: _pushing(lambda machine: float(machine.line())),
    # text and bytes
    0x53: _Machine.quoted,
    0x54: _sized(4, lambda data: data.decode("ascii")),
    0x55: _sized(1, lambda data: data.decode("ascii")),
    0x56: _pushing(lambda machine: machine.line().decode("raw-unicode-escape")),
    0x58: _sized(4, _utf8),
    0x8D: _sized(8, _utf8),
    0x42: _sized(4, bytes),
    0x43: _sized(1, bytes),
    0x8E: _sized(8, bytes),
    0x96: _sized(8, bytearray),
    0x97: _Machine.out_of_band,
    0x98: lambda machine: machine.replace(1, Call("read-only", None, (machine.stack[-1],))),
    # containers
    0x29: _pushing(lambda machine: ()),
    0x85: lambda machine: machine.replace(1, _exactly(machine.stack, 1)),
    0x87: lambda machine: machine.replace(3, _exactly(machine.stack, 3)),
    0x74: _pushing(lambda machine: tuple(machine.marked())),
    0x6C: _pushing(lambda machine: machine.marked()),
    0x64: _pushing(lambda machine: Pairs(machine.marked())),
    0x8F: _pushing(lambda machine: Items()),
    0x91: _pushing(lambda machine: FrozenItems(machine.marked())),
    0x61: lambda machine: machine.extend([machine.stack.pop()]),
    0x65: lambda machine: machine.extend(machine.marked()),
    0x90: lambda machine: machine.extend(machine.marked()),
    0x73: lambda machine: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    0x75: lambda machine: machine.update(machine.marked()),
    # objects
    0x63: _pushing(lambda machine: Global(machine.line().decode(), machine.line().decode())),
    0x93: _Machine.name,
    0x52: _Machine.reduce,
    0x62: _Machine.build,
    0x92: _Machine.new_with_keywords,
    0x6F: _Machine.old_object,
    0x69: _Machine.old_instance,
    0x50: _pushing(lambda machine: Call("persistent", None, (machine.line().decode(),))),
    0x51: lambda machine: machine.replace(1, Call("persistent", None, (machine.stack[-1],))),
    0x82: _pushing(lambda machine: Call("extension", None, (machine.number(1),))),
    0x83: _pushing(lambda machine: Call("extension", None, (machine.number(2),))),
    0x84: _pushing(lambda machine: Call("extension", None, (machine.number(4),))),
    # stack and memo
    _POP: _Machine.pop,
    0x31: _Machine.marked,
    0x32: _pushing(lambda machine: machine.stack[-1]),
    0x67: _pushing(lambda machine: machine.memo[int(machine.line())]),
    0x70: lambda machine: machine.put(int(machine.line())),
    0x71: lambda machine: machine.put(machine.number(1)),
    0x72: lambda machine: machine.put(machine.number(4)),
    # framing
    0x80: lambda machine: machine.take(1),
    0x95: lambda machine: machine.take(8),
}
"""What the less common opcodes do."""
