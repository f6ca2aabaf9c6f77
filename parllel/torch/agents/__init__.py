"""Agents: a model with the distribution of its actions."""
