"""Runners: the outer loop of a training program."""

from parllel.runners.rl_runner import Algorithm, RLRunner, RunSummary

__all__ = ["Algorithm", "RLRunner", "RunSummary"]
