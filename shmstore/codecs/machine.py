"""Runs the pickle of a value that came from another host.

pickle's own unpicklers cannot be used for these: they import what they are told,
let a stream set attributes of whatever it got hold of, and grow a memo to any size
that is claimed. This one knows the operations that our picklers write and no others;
it calls nothing but what ``trust`` names, sets nothing but what values of those types
have, and believes no size that is not in the stream.

Runs of numbers are handed to pickle as they are: these operations only push.
"""

from __future__ import annotations

import collections
import enum
import pickle
import re
import types
from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from shmstore.codecs.trust import SINGLETONS, TYPES, Trust, unsafe
from shmstore.errors import CorruptValue

_COPIED_BYTES: Final = 64 * 1024

#: A run of operations that push one number, boolean or None each.
_LEAVES: Final = re.compile(rb"(?:K.|M..|J.{4}|[N\x88\x89]|G.{8})++", re.DOTALL)
_LEAF: Final = frozenset(b"KMJN\x88\x89G")

_U16 = Struct("<H").unpack_from
_U32 = Struct("<I").unpack_from
_I32 = Struct("<i").unpack_from
_U64 = Struct("<Q").unpack_from
_F64 = Struct(">d").unpack_from

#: Tuples within tuples: hashing them takes a piece of the C stack for each.
_DEEPEST_TUPLE: Final = 5000

#: Objects that free what they hold one within the other, without a limit of Python's:
#: as deep as this directly within each other.
_DEEPEST_BARE: Final = 100

_types_by_id: Final = {id(kind): kind for kind in TYPES.values()}


def damaged(check: str) -> CorruptValue:
    """The error for a stream that no pickler of ours wrote."""
    return CorruptValue(check, "pickle stream")


class Machine:
    """Rebuilds one value. For use by one thread, once.

    Args:
        stream: The pickle.
        trust: Which classes it may use beside the fixed table.
        constructors: The functions of ``shmstore._wire`` that it may call, by name.
        buffers: What the stream asks for with NEXT_BUFFER, in order.
    """

    def __init__(
        self,
        stream: memoryview,
        trust: Trust,
        constructors: dict[str, Callable[..., Any]],
        buffers: list[memoryview],
    ) -> None:
        self._data: Any = bytes(stream) if len(stream) <= _COPIED_BYTES else stream
        self._classes = trust.classes
        self._makes = trust.makes
        self._constructors = constructors
        self._buffers = iter(buffers)
        self._callable: dict[int, Any] = dict(_types_by_id)
        self._depth: dict[int, int] = {}
        self._placed: set[int] = set()
        self._late = 0

    def run(self) -> Any:
        """The value.

        Raises:
            CorruptValue: The stream is not one that our picklers write.
            UnsafeValue: It asks for what it may not have.
        """
        data, size = self._data, len(self._data)
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: list[Any] = []
        at = 0
        while True:
            op = data[at]
            at += 1
            if op == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif op == 0x8C:  # SHORT_BINUNICODE
                end = at + 1 + data[at]
                if end >= size:
                    raise damaged("it ends within a text")
                text = str(data[at + 1 : end], "utf-8", "surrogatepass")
                stack.append(text)
                at = end
                if data[at] == 0x94:  # nearly always memoized
                    memo.append(text)
                    at += 1
            elif op in _LEAF:
                # One by itself costs less this way than a run.
                if op == 0x4B:  # BININT1
                    stack.append(data[at])
                    at += 1
                elif op == 0x4E:  # NONE
                    stack.append(None)
                elif op == 0x47:  # BINFLOAT
                    stack.append(_F64(data, at)[0])
                    at += 8
                elif op == 0x4D:  # BININT2
                    stack.append(_U16(data, at)[0])
                    at += 2
                elif op == 0x4A:  # BININT
                    stack.append(_I32(data, at)[0])
                    at += 4
                else:  # NEWTRUE, NEWFALSE
                    stack.append(op == 0x88)
                if data[at] in _LEAF:
                    found = _LEAVES.match(data, at)
                    if found is None:
                        raise damaged("it ends within a number")
                    stack += pickle.loads(b"(%bt." % found[0])
                    at = found.end()
            elif op == 0x68:  # BINGET
                stack.append(memo[data[at]])
                at += 1
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[_U32(data, at)[0]])
                at += 4
            elif op == 0x75:  # SETITEMS
                items = stack
                stack = marks.pop()
                self._set_items(stack[-1], items)
            elif op == 0x73:  # SETITEM
                items = stack[-2:]
                del stack[-2:]
                self._set_items(stack[-1], items)
            elif op == 0x65:  # APPENDS
                items = stack
                stack = marks.pop()
                self._append(stack[-1], items)
            elif op == 0x61:  # APPEND
                items = [stack.pop()]
                self._append(stack[-1], items)
            elif op == 0x28:  # MARK
                marks.append(stack)
                stack = []
            elif op == 0x7D:  # EMPTY_DICT
                stack.append({})
            elif op == 0x5D:  # EMPTY_LIST
                stack.append([])
            elif op == 0x86:  # TUPLE2
                stack[-2:] = [self._tuple(stack[-2], stack[-1])]
            elif op == 0x85:  # TUPLE1
                stack[-1] = self._tuple(stack[-1])
            elif op == 0x87:  # TUPLE3
                stack[-3:] = [self._tuple(stack[-3], stack[-2], stack[-1])]
            elif op == 0x74:  # TUPLE
                items = stack
                stack = marks.pop()
                stack.append(self._tuple(*items))
            elif op == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif op == 0x52:  # REDUCE
                args = stack.pop()
                stack[-1] = self._call(stack[-1], args)
            elif op == 0x81:  # NEWOBJ
                args = stack.pop()
                stack[-1] = self._new(stack[-1], args, {})
            elif op == 0x92:  # NEWOBJ_EX
                options = stack.pop()
                args = stack.pop()
                stack[-1] = self._new(stack[-1], args, options)
            elif op == 0x62:  # BUILD
                state = stack.pop()
                self._build(stack[-1], state)
            elif op == 0x93:  # STACK_GLOBAL
                name = stack.pop()
                stack[-1] = self._find(stack[-1], name)
            elif op == 0x8F:  # EMPTY_SET
                stack.append(set())
            elif op == 0x90:  # ADDITEMS
                items = stack
                stack = marks.pop()
                self._add(stack[-1], items)
            elif op == 0x91:  # FROZENSET
                items = stack
                stack = marks.pop()
                stack.append(frozenset(items))
            elif op == 0x8A:  # LONG1
                end = at + 1 + data[at]
                stack.append(_number(data, at + 1, end, size))
                at = end
            elif op == 0x8B:  # LONG4
                end = at + 4 + _U32(data, at)[0]
                stack.append(_number(data, at + 4, end, size))
                at = end
            elif op == 0x58:  # BINUNICODE
                end = at + 4 + _U32(data, at)[0]
                stack.append(_text(data, at + 4, end, size))
                at = end
            elif op == 0x8D:  # BINUNICODE8
                end = at + 8 + _U64(data, at)[0]
                stack.append(_text(data, at + 8, end, size))
                at = end
            elif op == 0x43:  # SHORT_BINBYTES
                end = at + 1 + data[at]
                stack.append(_bytes(data, at + 1, end, size))
                at = end
            elif op == 0x42:  # BINBYTES
                end = at + 4 + _U32(data, at)[0]
                stack.append(_bytes(data, at + 4, end, size))
                at = end
            elif op == 0x8E:  # BINBYTES8
                end = at + 8 + _U64(data, at)[0]
                stack.append(_bytes(data, at + 8, end, size))
                at = end
            elif op == 0x96:  # BYTEARRAY8
                end = at + 8 + _U64(data, at)[0]
                stack.append(bytearray(_bytes(data, at + 8, end, size)))
                at = end
            elif op == 0x95:  # FRAME
                at += 8
            elif op == 0x80:  # PROTO
                if data[at] != 5:
                    raise damaged(f"it is of pickle protocol {data[at]}")
                at += 1
            elif op == 0x30:  # POP
                if stack:
                    stack.pop()
                else:
                    stack = marks.pop()
            elif op == 0x31:  # POP_MARK
                stack = marks.pop()
            elif op == 0x97:  # NEXT_BUFFER
                stack.append(next(self._buffers, None))
                if stack[-1] is None:
                    raise damaged("it asks for more buffers than there are")
            elif op == 0x98:  # READONLY_BUFFER
                if type(stack[-1]) is not memoryview:
                    raise damaged("what is to be read-only is no buffer")
                stack[-1] = stack[-1].toreadonly()
            elif op == 0x2E:  # STOP
                if len(stack) != 1 or marks:
                    raise damaged("it ends with more or less than one value")
                return stack[0]
            else:
                raise damaged(f"it has the operation {bytes([op])!r}, which none of ours has")

    # --- Names and calls -----------------------------------------------------------

    def _find(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str:
            raise damaged("a name is no text")
        key = module, name
        if module == "shmstore._wire":
            found: Any = self._constructors.get(name)
            if found is None:
                raise unsafe(f"{module}.{name}"[:300])
        else:
            if key in SINGLETONS:
                return SINGLETONS[key]
            found = TYPES.get(key) or self._classes.get(key)
            if found is None:
                raise unsafe(f"{module}.{name}"[:300])
            if found not in self._makes and key not in TYPES:
                return found
        # By identity, as what is called may be an object of any kind.
        self._callable[id(found)] = found
        return found

    def _call(self, function: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise damaged("a call without arguments")
        if self._callable.get(id(function), self) is not function:
            raise damaged("what is called is nothing that can be called")
        if function is slice:
            return self._slice(args)
        if function is collections.OrderedDict and args:
            raise damaged("an OrderedDict with arguments")
        made = function(*args)
        if isinstance(made, tuple):
            self._note_tuple(made, made)
        return made

    def _new(self, cls: Any, args: Any, options: Any) -> Any:
        if type(args) is not tuple or type(options) is not dict:
            raise damaged("a call without arguments")
        if not self._allowed(cls):
            raise damaged("what is made anew is no instance of an allowed class")
        made = cls.__new__(cls, *args, **options)
        if isinstance(made, tuple):
            self._note_tuple(made, made)
        return made

    def _allowed(self, cls: Any) -> bool:
        """Whether this is a class that the user allows to be made, and no other object."""
        return isinstance(cls, type) and cls in self._makes

    def _slice(self, args: tuple[Any, ...]) -> slice:
        if len(args) != 3 or any(_is_bare(arg) for arg in args):
            raise damaged("no such slice")
        made = slice(*args)
        self._note_tuple(made, args)
        return made

    # --- Filling -------------------------------------------------------------------

    def _set_items(self, target: Any, items: list[Any]) -> None:
        if len(items) & 1:
            raise damaged("a key without a value")
        kind = type(target)
        if kind is dict or kind in _DICTS or self._allowed(kind):
            if kind is collections.defaultdict:
                self.nest(target, items)
            for index in range(0, len(items), 2):
                target[items[index]] = items[index + 1]
        else:
            raise damaged("items of what has none")

    def _append(self, target: Any, items: list[Any]) -> None:
        kind = type(target)
        if kind is list:
            target.extend(items)
        elif kind is collections.deque:
            self.nest(target, items)
            target.extend(items)
        elif self._allowed(kind):
            for item in items:
                target.append(item)
        else:
            raise damaged("elements of what has none")

    def _add(self, target: Any, items: list[Any]) -> None:
        kind = type(target)
        if kind is set:
            target.update(items)
        elif self._allowed(kind):
            for item in items:
                target.add(item)
        else:
            raise damaged("elements of what is no set")

    def _build(self, target: Any, state: Any) -> None:
        """Sets attributes: of instances of allowed classes, and of two types that have some.

        Never of a class or function, which all values share.
        """
        kind = type(target)
        # An enum's members are shared by all values, too.
        if not (kind in _WITH_ATTRIBUTES or self._allowed(kind)) or isinstance(target, enum.Enum):
            raise unsafe(f"attributes of a {kind.__module__}.{kind.__qualname__}"[:300])
        if kind not in _WITH_ATTRIBUTES and hasattr(target, "__setstate__"):
            target.__setstate__(state)
            return
        slots = None
        if type(state) is tuple and len(state) == 2:
            state, slots = state
        if state is not None:
            if type(state) is not dict or not all(type(name) is str for name in state):
                raise damaged("attributes without names")
            target.__dict__.update(state)
        if slots is not None:
            if kind in _WITH_ATTRIBUTES or type(slots) is not dict:
                raise damaged("attributes without names")
            for name, value in slots.items():
                if type(name) is not str or (name.startswith("__") and name.endswith("__")):
                    raise damaged("an attribute that is Python's own")
                setattr(target, name, value)

    # --- Nesting -------------------------------------------------------------------

    def _tuple(self, *items: Any) -> tuple[Any, ...]:
        self._note_tuple(items, items)
        return items

    def _note_tuple(self, made: Any, items: Any) -> None:
        deepest = 0
        for item in items:
            if isinstance(item, (tuple, slice)):
                deepest = max(deepest, self._depth.get(id(item), 1))
        if deepest:
            if deepest >= _DEEPEST_TUPLE:
                raise damaged("tuples are nested too deeply")
            self._depth[id(made)] = deepest + 1

    def nest(self, parent: Any, children: Any) -> None:
        """Notes what is put into an object that frees its content without a limit of depth.

        The content of content counts as it is then. What is filled only after it was
        put elsewhere, as in a cycle, counts for all together.
        """
        deepest = 0
        for child in children:
            if _is_bare(child):
                deepest = max(deepest, self._depth.get(id(child), 1))
                self._placed.add(id(child))
        if not deepest:
            return
        if id(parent) in self._placed:
            self._late += deepest + 1
        depth = max(self._depth.get(id(parent), 1), deepest + 1)
        if depth + self._late > _DEEPEST_BARE:
            raise damaged("values are nested too deeply")
        self._depth[id(parent)] = depth


_DICTS: Final = frozenset({collections.OrderedDict, collections.Counter, collections.defaultdict})
_WITH_ATTRIBUTES: Final = frozenset({types.SimpleNamespace, collections.OrderedDict})


def _is_bare(value: Any) -> bool:
    """Whether freeing a value frees what it holds at once, within the same call of C."""
    kind = type(value)
    if kind is slice or kind is collections.defaultdict or kind is collections.deque:
        return True
    # numpy need not be imported for this: a value of its cannot be met then.
    return kind.__name__ == "ndarray" and kind.__module__ == "numpy" and value.dtype.hasobject


def _text(data: Any, start: int, end: int, size: int) -> str:
    if end > size:
        raise damaged("it ends within a text")
    return str(data[start:end], "utf-8", "surrogatepass")


def _bytes(data: Any, start: int, end: int, size: int) -> bytes:
    if end > size:
        raise damaged("it ends within bytes")
    return bytes(data[start:end])


def _number(data: Any, start: int, end: int, size: int) -> int:
    if end > size:
        raise damaged("it ends within a number")
    return int.from_bytes(data[start:end], "little", signed=True)
