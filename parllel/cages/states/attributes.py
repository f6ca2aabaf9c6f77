"""Attributes of objects as plain data, and back: objects are not made of data, they take it over.

Plain data are None, numbers, texts, bytes, NumPy arrays of numbers, and lists, tuples and
dictionaries of these.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import types
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import PurePath
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from parllel.generator_states import set_generator_state
from parllel.tree import TreePath, path_text

_PLAIN = (bool, int, float, str, bytes, type(None))
# What the program that loads a state has by itself. Functions are taken to keep nothing.
_CONSTANTS = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, functools.partial),
    *(np.ufunc, np.dtype, PurePath, EnvSpec),
)


def attributes_of(owner: object, *, but: Collection[str] = ()) -> dict[str, Any]:
    """Return what an object's attributes hold, as plain data.

    Generators of NumPy give their state, spaces that of their generators. Functions, classes and
    the like are constants, which are not stored.

    >>> attributes_of(types.SimpleNamespace(n_steps=3, queue=deque([1, 2], maxlen=2), make=int))
    {'n_steps': 3, 'queue': {'deque': [1, 2], 'maxlen': 2}, 'make': {'constant': 'type'}}

    Args:
        owner: the object.
        but: names of attributes to leave out.

    Raises:
        TypeError: an attribute holds something else; the message has its name.
    """
    return {name: pack(value, (name,)) for name, value in _pairs(owner) if name not in but}


def set_attributes(owner: object, data: dict[str, Any], *, but: Collection[str] = ()) -> None:
    """Give an object's attributes what `attributes_of` returned of another one of its class.

    Args:
        owner: the object.
        data: the attributes by their names. They are copied.
        but: as for `attributes_of`.

    Raises:
        ValueError: the object has attributes that the other one had not, or of other kinds.
    """
    own = {name: value for name, value in _pairs(owner) if name not in but}
    unknown = sorted(own.keys() - data.keys())
    if unknown:
        raise ValueError(f"{type(owner).__name__}: nothing was saved of its attributes {unknown}")
    for name, packed in data.items():
        value = unpack(packed, own.get(name), (name,))
        if value is not own.get(name) or name not in own:
            setattr(owner, name, value)


def pack(value: Any, path: TreePath) -> Any:
    """Return one value of an attribute as plain data; the path is that of errors."""
    if type(value) in _PLAIN:
        return value
    if (type(value) is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biufc":
        return copy.deepcopy(value)
    if type(value) in (list, tuple):
        return type(value)(pack(each, (*path, str(n))) for n, each in enumerate(value))
    if type(value) is deque:
        members = [pack(each, (*path, str(n))) for n, each in enumerate(value)]
        return {"deque": members, "maxlen": value.maxlen}
    if type(value) is dict and all(type(key) in (int, str) for key in value):
        return {"dict": {key: pack(each, (*path, str(key))) for key, each in value.items()}}
    if isinstance(value, np.random.Generator):
        return {"generator": copy.deepcopy(value.bit_generator.state)}
    if isinstance(value, np.random.RandomState):
        return {"random_state": value.get_state(legacy=False)}
    if isinstance(value, gym.Space):
        return {"space": [pack(each, (*path, "np_random")) for each in _generators_of(value)]}
    if isinstance(value, enum.Enum):
        return {"enum": value.name}
    if _is_of_gymnasium(value):  # RunningMeanStd
        return {"object": attributes_of(value)}
    if isinstance(value, _CONSTANTS):
        return {"constant": type(value).__name__}
    raise TypeError(
        f"{path_text(path)}: got a {type(value).__name__}, expected numbers, arrays of them, texts,"
        " generators of NumPy, or lists, tuples, deques and dictionaries of these"
    )


def unpack(data: Any, own: Any, path: TreePath) -> Any:
    """Return the value that `pack` was given.

    Args:
        data: what `pack` returned.
        own: the value that the attribute has now. Generators, spaces and objects are those of now,
            whose states are set.
        path: that of errors.
    """
    if type(data) in _PLAIN:
        return data
    if isinstance(data, np.ndarray | np.generic):
        return copy.deepcopy(data)
    if isinstance(data, list | tuple):
        return type(data)(_members(data, own, path))
    kind = next(iter(data))
    content = data[kind]
    if kind == "deque":
        return deque(_members(content, own, path), maxlen=data["maxlen"])
    if kind == "dict":
        known = own if isinstance(own, dict) else {}
        return {
            key: unpack(each, known.get(key), (*path, str(key))) for key, each in content.items()
        }
    try:
        _set(kind, own, content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path_text(path)}: got a {type(own).__name__}, expected the {kind} that was saved:"
            f" {error}"
        ) from error
    return type(own)[content] if kind == "enum" else own


def _members(data: Any, own: Any, path: TreePath) -> list[Any]:
    known = list(own) if isinstance(own, list | tuple | deque) and len(own) == len(data) else []
    known += [None] * (len(data) - len(known))
    pairs = enumerate(zip(data, known, strict=True))
    return [unpack(each, mine, (*path, str(number))) for number, (each, mine) in pairs]


def _set(kind: str, own: Any, content: Any) -> None:
    """Set the state of a value that stays what it is; raise where it is of another kind."""
    if kind == "generator":
        set_generator_state(own, copy.deepcopy(content))
    elif kind == "random_state":
        set_generator_state(own, content)
    elif kind == "space":
        for part, state in zip(_parts_of(own), content, strict=True):
            if state is not None:  # otherwise it has drawn nothing
                set_generator_state(part.np_random, copy.deepcopy(state["generator"]))
    elif kind == "object":
        set_attributes(own, content)
    elif kind == "enum":
        type(own)[content]
    elif kind != "constant" or type(own).__name__ != content:
        raise ValueError(f"{kind} {content!r}")


def _pairs(owner: object) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of an object, those of a dataclass with slots too."""
    names = list(getattr(owner, "__dict__", {}))
    if dataclasses.is_dataclass(owner):
        names += [field.name for field in dataclasses.fields(owner) if field.name not in names]
    return ((name, getattr(owner, name)) for name in names)


def _is_of_gymnasium(value: Any) -> bool:
    is_its_own = type(value).__module__.partition(".")[0] == "gymnasium"
    return (
        is_its_own and hasattr(value, "__dict__") and not isinstance(value, (gym.Env, *_CONSTANTS))
    )


def _generators_of(space: gym.Space[Any]) -> list[np.random.Generator | None]:
    """Return the generators of a space and its parts; None for those that were not used yet."""
    return [getattr(part, "_np_random", None) for part in _parts_of(space)]


def _parts_of(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """Return a space, and all spaces that it consists of."""
    found = [space]
    for value in vars(space).values():
        members: Any = list(value.values()) if isinstance(value, dict) else value
        for part in members if isinstance(members, list | tuple) else [members]:
            if isinstance(part, gym.Space):
                found += _parts_of(part)
    return found
