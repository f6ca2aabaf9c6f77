"""Kernels: bodies of loops, and what compiles them. They import no other module of parllel."""
