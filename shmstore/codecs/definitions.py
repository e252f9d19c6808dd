"""Enums, named tuples and type variables written by value, which dill does not.

dill writes the enums and type variables of a script by name only, and a named
tuple without its methods. Here the bare class is made anew, then its methods and other attributes
are set, so that these may refer to the class itself.
"""

from __future__ import annotations

import collections
import enum
import types
from typing import Any, TypeVar

from shmstore.codecs.reductions import name_of
from shmstore.errors import Unserializable


def reduce(kind: type) -> Any:
    """How an enum's or a named tuple's class is written, or NotImplemented."""
    if isinstance(kind, enum.EnumMeta):
        return _reduce_enum(kind)
    if kind.__bases__ == (tuple,) and hasattr(kind, "_fields"):
        return _reduce_named_tuple(kind)
    return NotImplemented


def reduce_type_variable(value: TypeVar) -> Any:
    """How a type variable is written: by all that it consists of."""
    return make_type_variable, (
        value.__name__,
        value.__constraints__,
        value.__bound__,
        value.__covariant__,
        value.__contravariant__,
        value.__module__,
    )


def make_type_variable(
    name: str,
    constraints: tuple[Any, ...],
    bound: Any,
    covariant: bool,
    contravariant: bool,
    module: str,
) -> TypeVar:
    """Makes a type variable."""
    make: Any = TypeVar
    made: TypeVar = make(
        name, *constraints, bound=bound, covariant=covariant, contravariant=contravariant
    )
    made.__module__ = module
    return made


def _reduce_enum(kind: enum.EnumMeta) -> Any:
    maker = vars(kind).get("__new_member__")
    if isinstance(maker, types.FunctionType) and _is_written_in(kind, maker):
        raise Unserializable(
            name_of(kind), "an enum with a __new__ of its own must be defined in a module"
        )
    members = {name: value.value for name, value in vars(kind)["_member_map_"].items()}
    head = (kind.__bases__, kind.__name__, kind.__qualname__, kind.__module__, members)
    attributes = _attributes(kind, vars(make_enum(*head)))
    return make_enum, head, attributes, None, None, set_attributes


def _reduce_named_tuple(kind: Any) -> Any:
    head = (kind._fields, kind._field_defaults, kind.__name__, kind.__qualname__, kind.__module__)
    attributes = _attributes(kind, vars(make_named_tuple(*head)))
    if "__annotations__" in vars(kind):
        attributes["__annotations__"] = kind.__annotations__
    return make_named_tuple, head, attributes, None, None, set_attributes


def _attributes(kind: type, bare: Any) -> dict[str, Any]:
    """What a class has beyond a bare one of its kind."""
    attributes = {
        name: value
        for name, value in vars(kind).items()
        if name not in bare or _is_written_in(kind, value)
    }
    attributes["__doc__"] = kind.__doc__
    return attributes


def _is_written_in(kind: type, value: Any) -> bool:
    # namedtuple's own functions bear the class's name, but another file's.
    return (
        isinstance(value, types.FunctionType)
        and value.__qualname__.startswith(kind.__qualname__ + ".")
        and value.__module__ == kind.__module__
    )


def make_enum(
    bases: tuple[type, ...], name: str, qualname: str, module: str, members: dict[str, Any]
) -> enum.EnumMeta:
    """Makes an enum with these members and nothing else."""
    meta: Any = type(bases[-1])
    content = meta.__prepare__(name, bases)
    for member, value in members.items():
        content[member] = value
    made: Any = meta.__new__(meta, name, bases, content)
    made.__module__ = module
    made.__qualname__ = qualname
    return made  # type: ignore[no-any-return]


def make_named_tuple(
    fields: tuple[str, ...], defaults: dict[str, Any], name: str, qualname: str, module: str
) -> type:
    """Makes a named tuple with these fields and nothing else."""
    named_tuple: Any = collections.namedtuple
    made: type = named_tuple(name, fields, defaults=defaults.values(), module=module)
    made.__qualname__ = qualname
    return made


def set_attributes(kind: type, attributes: dict[str, Any]) -> None:
    """Gives a class its methods and other attributes."""
    for name, value in attributes.items():
        setattr(kind, name, value)
