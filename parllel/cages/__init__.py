"""Cages: environments behind one contract, stepped in this process or in worker processes.

A cage is written with the files of this folder. `process` holds the machinery of workers, `actors`
that of Ray, `vector` that of vector environments, `device` the dialects of those with tensors, and
`states` what is saved of environments.
"""

from parllel.cages.cage import Cage, Command
from parllel.cages.device.dialect import DeviceStep, Dialect
from parllel.cages.device.functional import FunctionalEnvs
from parllel.cages.device_cage import DeviceCage
from parllel.cages.episodes import TrajInfo
from parllel.cages.mask_in_observation import MaskInObservation
from parllel.cages.parallel_agents import ParallelAgents
from parllel.cages.point_cloud import PointCloud
from parllel.cages.process.process_cage import ProcessCage
from parllel.cages.process.processors import n_physical_cores
from parllel.cages.process.worker_cage import TIMEOUT_S, OnWorkerError
from parllel.cages.process.worker_error import WorkerError
from parllel.cages.ray_cage import RayCage
from parllel.cages.seeds import Seed, spawn_seeds
from parllel.cages.serial_cage import SerialCage
from parllel.cages.values.agent_forms import AgentForm
from parllel.cages.values.any_env import AnyEnv, ParallelEnv
from parllel.cages.values.env_rows import as_tree, write_column
from parllel.cages.values.info_values import info_values
from parllel.cages.values.infos import declaration, is_numeric
from parllel.cages.values.jagged_spaces import Capacities
from parllel.cages.values.row_specs import row_specs
from parllel.cages.values.spaces import bounds_of, empty_rows
from parllel.cages.vector_cage import VectorCage
from parllel.tree.fitting import MisfitError

__all__ = [
    "TIMEOUT_S",
    "AgentForm",
    "AnyEnv",
    "Cage",
    "Capacities",
    "Command",
    "DeviceCage",
    "DeviceStep",
    "Dialect",
    "FunctionalEnvs",
    "MaskInObservation",
    "MisfitError",
    "OnWorkerError",
    "ParallelAgents",
    "ParallelEnv",
    "PointCloud",
    "ProcessCage",
    "RayCage",
    "Seed",
    "SerialCage",
    "TrajInfo",
    "VectorCage",
    "WorkerError",
    "as_tree",
    "bounds_of",
    "declaration",
    "empty_rows",
    "info_values",
    "is_numeric",
    "n_physical_cores",
    "row_specs",
    "spawn_seeds",
    "write_column",
]
