"""Cages: environments behind one contract, stepped in this process or elsewhere."""

from parllel.cages.cage import Cage, Command
from parllel.cages.process import ProcessCage
from parllel.cages.serial import SerialCage
from parllel.cages.trajectory import TrajInfo
from parllel.cages.vector import VectorCage
from parllel.cages.worker_error import WorkerError

__all__ = ["Cage", "Command", "ProcessCage", "SerialCage", "TrajInfo", "VectorCage", "WorkerError"]
