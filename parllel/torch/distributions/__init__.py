"""Distributions of actions, as functions of a model's outputs; no objects for each step."""
