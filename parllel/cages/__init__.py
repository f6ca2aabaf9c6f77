"""Cages: environments behind one contract, stepped in this process or elsewhere."""

from parllel.cages.cage import Cage, Command
from parllel.cages.episodes import TrajInfo
from parllel.cages.process.process_cage import ProcessCage
from parllel.cages.process.worker_error import WorkerError
from parllel.cages.serial_cage import SerialCage
from parllel.cages.vector_cage import VectorCage

__all__ = ["Cage", "Command", "ProcessCage", "SerialCage", "TrajInfo", "VectorCage", "WorkerError"]
