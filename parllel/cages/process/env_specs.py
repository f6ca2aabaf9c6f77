"""EnvSpecs that a program has registered with gymnasium, for a worker that may not need them."""

from __future__ import annotations

import marshal
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from parllel.cages.process.definitions import pack, unpack

_HEAVY = ("entry_point", "kwargs", "additional_wrappers", "vector_entry_point")


class SentSpec(EnvSpec):
    """A spec whose objects are unpacked when they are asked for; then it is the spec itself.

    So an environment that a worker does not make has nothing imported there, and no error of its
    module is raised.

    >>> spec = SentSpec({"id": "Mine-v0"}, pack({"kwargs": {"size": 3}, "entry_point": "mine:Env"}))
    >>> spec.id, type(spec).__name__
    ('Mine-v0', 'SentSpec')
    >>> spec.kwargs, type(spec).__name__
    ({'size': 3}, 'EnvSpec')

    Args:
        light: the attributes that are no objects of the program.
        packed: the others, by their names; or the reason why they could not be packed.
    """

    def __init__(self, light: dict[str, Any], packed: bytes | str) -> None:
        self.__dict__.update(light, _packed=packed)

    def __getattribute__(self, name: str) -> Any:  # Any: of any attribute
        if name in _HEAVY:
            self._become_itself()
        return object.__getattribute__(self, name)  # by now, it may be of another class

    def __setattr__(self, name: str, value: object) -> None:
        self._become_itself()
        setattr(self, name, value)

    def _become_itself(self) -> None:
        packed = self.__dict__["_packed"]
        if isinstance(packed, str):
            raise TypeError(f"{self.id}: it can't be sent to a worker process ({packed})")
        self.__dict__.update(unpack(packed))
        del self.__dict__["_packed"]
        object.__setattr__(self, "__class__", EnvSpec)


def pack_env_specs() -> dict[str, EnvSpec]:
    """Return what the program has registered with gymnasium, in a form that can be pickled."""
    return {
        name: spec if _is_plain(spec) else _pack_spec(spec)
        for name, spec in gym.registry.items()
        if not _is_gymnasiums_own(spec)
    }


def _pack_spec(spec: EnvSpec) -> SentSpec:
    light = dict(vars(spec))
    heavy = {name: light.pop(name) for name in _HEAVY if name in light}
    try:
        packed: bytes | str = pack(heavy)
    except Exception as error:  # it counts only where the environment is made
        packed = f"{type(error).__name__}: {error}"
    return SentSpec(light, packed)


def _is_plain(spec: EnvSpec) -> bool:
    """Return whether a spec holds nothing but names and numbers, as nearly all do."""
    try:
        marshal.dumps(vars(spec))
    except ValueError:
        return False
    return type(spec) is EnvSpec


def _is_gymnasiums_own(spec: EnvSpec) -> bool:
    entry_point = spec.entry_point
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return str(module).startswith("gymnasium.")
