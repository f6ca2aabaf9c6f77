"""What reaches a worker: definitions, handles, registered environments, and the interpreter."""

import copy
import gc
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from faulty_envs import Faulty
from long_run import all_but_first
from parllel import Array
from parllel.cages import ProcessCage
from parllel.cages.process.definitions import can_be_imported, pack, packing, unpack
from parllel.cages.process.env_specs import SentSpec, pack_env_specs
from parllel.cages.process.interpreter import import_path, interpreter_flags
from parllel.testing.contracts.cage_calls import reset, step

TESTS = str(Path(__file__).parents[1])


class Reader(gym.Env):
    """Show an array; with action 1 end the process once the array says 9."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, table: Any, pipe: Any = None) -> None:
        self._table, self._pipe = table, pipe

    def reset(self, **_: Any) -> Any:
        return self._table.to_ndarray().copy(), {}

    def step(self, action: Any) -> Any:
        if self._pipe is not None:
            self._pipe.send("stepped")
        if self._table.to_ndarray()[0] == 9:
            self._table[0] = 8
            os._exit(1)
        return self._table.to_ndarray().copy(), 1.0, False, False, {}


def n_descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


# Handles


def test_shared_memory_reaches_each_worker_that_replaces_another() -> None:
    table = Array((4,), np.float32, storage="shared")
    table[...] = 7
    with ProcessCage(Reader, {"table": table}, on_worker_error="restart") as cage:
        reset(cage)
        for number in (1, 2):
            table[0] = 9
            observation, *_ = step(cage, 0)
            assert (cage.n_restarts, observation[0]) == (number, 8)
            table[1] = number  # both see the same memory
            assert step(cage, 0)[0][1] == number


def test_pipes_reach_workers_and_nothing_of_them_is_left() -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)
    table = Array((4,), np.float32, storage="shared")
    kwargs = {"table": table, "pipe": writer}
    ProcessCage(Reader, kwargs).close()
    before = n_descriptors()
    for _ in range(3):
        with ProcessCage(Reader, kwargs) as cage:
            reset(cage)
            step(cage, 0)
            assert reader.recv() == "stepped"
    assert n_descriptors() == before


def test_more_descriptors_than_a_packet_takes_reach_a_worker() -> None:
    tables = [Array((1,), np.int64, storage="shared") for _ in range(230)]
    for number, table in enumerate(tables):
        table[0] = number
    with ProcessCage(Summer, {"tables": tables}) as cage:
        assert reset(cage)[1]["sum"] == sum(range(230))


class Summer(Faulty):
    def __init__(self, tables: list[Array]) -> None:
        super().__init__()
        self._tables = tables

    def reset(self, **options: Any) -> Any:
        total = sum(int(table[0].to_ndarray()) for table in self._tables)
        return super().reset(**options)[0], {"sum": total}


def test_inherited_memory_is_refused_for_workers_that_inherit_none() -> None:
    table = Array((4,), np.float32, storage="inherited")
    with pytest.raises(TypeError, match=r"env_kwargs: got .* can't be sent .* inherits no memory"):
        ProcessCage(Reader, {"table": table})


@pytest.mark.filterwarnings("ignore:This process .* multi-threaded:DeprecationWarning")
def test_inherited_memory_reaches_workers_that_are_forked() -> None:
    table = Array((4,), np.float32, storage="inherited")
    table[...] = 7
    with ProcessCage(Reader, {"table": table}, start_method="fork") as cage:
        np.testing.assert_array_equal(reset(cage)[0], 7)


# Environments that are registered


def foreign_module(name: str) -> ModuleType:
    """Return a module that only this process has."""
    module = ModuleType(name)
    code = """
    from faulty_envs import Faulty
    STEP = 3
    class Plugin(Faulty):
        def reset(self, **options):
            return super().reset(**options)[0], {"step": STEP}
    """
    exec(textwrap.dedent(code), vars(module))
    return module


@pytest.fixture
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)


class Untold:
    """Pickled without complaint; an error where it is unpickled."""

    def __reduce__(self) -> Any:
        return raise_it, ()


def raise_it() -> None:
    raise ImportError("a library that is missing in workers")


@pytest.mark.usefixtures("_registry")
def test_a_registered_environment_is_loaded_where_it_is_used() -> None:
    import torch  # not above: workers import this module

    lock = threading.Lock()
    gym.register("Broken-v0", lambda: None, kwargs={"of": Untold()})
    gym.register("Locked-v0", lambda: lock)
    gym.register("Heavy-v0", lambda: None, kwargs={"dtype": torch.int})
    with ProcessCage(make_and_tell, {"id": "CartPole-v1"}) as cage:
        assert reset(cage)[1] == {"has_torch": False, "names": 3}
    with pytest.raises(ImportError, match="a library that is missing in workers"):
        ProcessCage(gym.make, {"id": "Broken-v0"})
    with pytest.raises(TypeError, match="Locked-v0: it can't be sent to a worker process"):
        ProcessCage(gym.make, {"id": "Locked-v0"})


def make_and_tell(**kwargs: Any) -> gym.Env:
    gym.register("Another-v0", "nowhere:Env")  # it looks at all that are registered
    return Teller(gym.make(**kwargs))


class Teller(gym.Wrapper):
    def reset(self, **options: Any) -> Any:
        names = [name for name in ("Broken-v0", "Locked-v0", "Heavy-v0") if name in gym.registry]
        info = {"has_torch": "torch" in sys.modules, "names": len(names)}
        return super().reset(**options)[0], info


# A module that registers an environment when it is imported, as plugins do.
PLUGIN = """
import gymnasium as gym
gym.register("Plugged-v0", "faulty_envs:Faulty", max_episode_steps=3)

def make():
    return gym.make("Plugged-v0")
"""
PROGRAM = """
import {module}
import gymnasium as gym
import numpy as np
from parllel.cages import ProcessCage

gym.register("Another-v0", "nowhere:Env")
gym.registry["Plugged-v0"].max_episode_steps = 1

def make_later():
    import {module}
    return {module}.make()

for make in ({module}.make, make_later):
    with ProcessCage(make) as cage:
        cage.reset_async()
        cage.await_step()
        cage.step_async(np.array(0))
        print("truncated", cage.await_step()[3])
"""


@pytest.mark.long
def test_a_module_that_registers_again_in_a_worker_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "plugin_of_envs.py").write_text(PLUGIN)
    code = PROGRAM.format(module="plugin_of_envs")
    path = os.pathsep.join([str(tmp_path), TESTS])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    by_name, later = done.stdout.splitlines()
    assert by_name == "truncated True"  # the program's own word counts, and not the module's
    assert later.startswith("truncated")  # here the module comes last


def test_a_spec_that_was_sent_becomes_the_spec_itself() -> None:
    spec = EnvSpec("Mine-v0", entry_point=Untold, kwargs={"size": 3}, max_episode_steps=5)
    sent = SentSpec(
        {"id": "Mine-v0", "max_episode_steps": 5},
        pack({name: getattr(spec, name) for name in ("entry_point", "kwargs")}),
    )
    assert sent.max_episode_steps == 5
    assert copy.deepcopy(sent).entry_point is Untold
    assert type(sent) is SentSpec
    sent.kwargs = {"size": 4}
    assert (type(sent), sent.kwargs, sent.entry_point) == (EnvSpec, {"size": 4}, Untold)


@pytest.mark.usefixtures("_registry")
def test_only_what_a_program_registers_is_sent() -> None:
    assert not any(name.startswith("CartPole") for name in pack_env_specs())
    gym.register("Plain-v0", "somewhere:Env", kwargs={"size": 3})
    assert type(pack_env_specs()["Plain-v0"]) is EnvSpec


# Definitions


def test_modules_that_only_this_process_has_are_sent_by_their_definitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = foreign_module("module_without_a_file")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert not can_be_imported(module.__name__)
    with ProcessCage(module.Plugin) as cage:
        assert reset(cage)[1]["step"] == 3
    assert not cloudpickle.list_registry_pickle_by_value()


def test_a_module_of_the_same_name_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own", "found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "doubled.py").write_text("")
    module = ModuleType("doubled")
    monkeypatch.setitem(sys.modules, "doubled", module)
    monkeypatch.syspath_prepend(str(tmp_path / "found"))
    for name in ("own", "found"):
        module.__file__ = str(tmp_path / name / "doubled.py")
        assert can_be_imported("doubled") == (name == "found")


@pytest.mark.parametrize("others", [[], ["single.py"], ["loaded.py"]])
def test_a_module_whose_parent_can_not_be_imported_is_sent_by_its_definitions(
    others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path").mkdir()
    for name in ["own.py", *(f"path/{other}" for other in others)]:
        (tmp_path / name).write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    module = foreign_module("single.loaded")  # as `spec_from_file_location` names one
    module.__file__ = str(tmp_path / "own.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with ProcessCage(module.Plugin) as cage:
        assert reset(cage)[1]["step"] == 3


def test_a_module_whose_parent_was_not_imported_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "loaded.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = ModuleType("single.loaded")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("loaded.py", "other.py"):
        module.__file__ = str(tmp_path / "single" / name)
        (tmp_path / "single" / name).touch()
        assert can_be_imported(module.__name__) == (name == "loaded.py")


@pytest.mark.parametrize("name", ["os.path", "numpy", "gymnasium.envs.registration", "faulty_envs"])
def test_modules_on_the_path_are_sent_by_their_names(name: str) -> None:
    assert can_be_imported(name)


SCRIPT = """
import multiprocessing, pickle, sys
from concurrent.futures import ProcessPoolExecutor
import gymnasium as gym
import numpy as np
from parllel.cages import ProcessCage

class Answer:
    number = 5

def answer(question):
    return Answer()

class Parent(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def __init__(self, method):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(1, context) as pool:
            assert pool.submit(answer, 1).result().number == 5
        assert pickle.loads(pickle.dumps(answer)) is answer
        assert type(pickle.loads(pickle.dumps(Answer()))) is Answer
    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

ProcessCage(Parent, {"method": sys.argv[1]}).close()
print("made")
"""


@pytest.mark.parametrize("method", all_but_first(["spawn", "fork", "forkserver"]))
def test_functions_of_a_script_without_a_guard_reach_processes_of_environments(
    method: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), method]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "made\n", run.stderr


@pytest.mark.parametrize("method", all_but_first(["spawn", "fork", "forkserver"]))
def test_functions_of_a_module_that_only_the_program_has_reach_processes_of_environments(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loaded.py").write_text(SCRIPT.partition("\nProcessCage(")[0])
    spec = importlib.util.spec_from_file_location("nowhere.loaded", tmp_path / "loaded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    ProcessCage(module.Parent, {"method": method}).close()


def test_unpacked_names_are_not_given_to_a_module_that_was_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = foreign_module("module_without_a_file")
    exec("def double(n): return 2 * n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    packed, own = pack(module.double), module.double
    assert unpack(packed)(4) == 8
    assert module.double is own


def test_unpacked_names_can_be_found_in_main(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    exec("def double(n): return 2 * n", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    packed = pack(main.double)
    del main.double
    assert unpack(packed)(4) == 8
    assert main.double(3) == 6


def test_a_descriptor_is_collected_beside_what_is_packed() -> None:
    table = Array((4,), np.float32, storage="shared")
    with packing("forkserver") as handles:
        pack(table)
    assert len(handles.descriptors) == 1
    assert os.fstat(handles.descriptors[0]).st_ino


# The interpreter

FLAGS = """
import json, sys
sys.path.insert(0, {tests!r}); sys.path.insert(0, {root!r})
import pathlib; sys.path.append(pathlib.Path("/tmp"))
from parllel.cages import ProcessCage
import gymnasium as gym, numpy as np

class Told(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {{"flags": tuple(sys.flags), "x": sys._xoptions}}

with ProcessCage(Told) as cage:
    cage.reset_async()
    _, info = cage.await_step()
    assert info["flags"] == tuple(sys.flags), (info["flags"], tuple(sys.flags))
    assert info["x"] == sys._xoptions
print("same")
"""


@pytest.mark.parametrize(
    "flags", all_but_first([["-E", "-s", "-O"], ["-I"], ["-X", "int_max_str_digits=5000"]])
)
def test_a_worker_has_the_options_of_its_program(flags: list[str]) -> None:
    code = FLAGS.format(tests=TESTS, root=str(Path(TESTS).parent))
    command = [sys.executable, *flags, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "same\n", run.stderr


def test_entries_of_the_path_that_are_no_strings_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", ["", Path("/tmp"), "/lib", None])
    assert import_path() == ["", "/lib"]
    assert "-c" not in interpreter_flags()
