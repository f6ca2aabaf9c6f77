"""Cages: environments behind one contract, stepped in this process or elsewhere."""

from parllel.cages.cage import Cage, Command
from parllel.cages.serial import SerialCage
from parllel.cages.trajectory import TrajInfo
from parllel.cages.vector import VectorCage

__all__ = ["Cage", "Command", "SerialCage", "TrajInfo", "VectorCage"]
