"""Runners: the outer loop of a training program, its hooks, and runs in files."""

from parllel.runners.checkpoints import Checkpoints
from parllel.runners.hooks import Evaluator, Hook, Run, every
from parllel.runners.record_video import record_side_by_side, record_video
from parllel.runners.rl_runner import Algorithm, RLRunner, RunSummary
from parllel.runners.run_config import RunConfig
from parllel.runners.run_folder import RunFolder
from parllel.runners.saved_run import load_run, save_run

__all__ = [
    "Algorithm",
    "Checkpoints",
    "Evaluator",
    "Hook",
    "RLRunner",
    "Run",
    "RunConfig",
    "RunFolder",
    "RunSummary",
    "every",
    "load_run",
    "record_side_by_side",
    "record_video",
    "save_run",
]
