"""Algorithms: how an agent learns from a batch."""
