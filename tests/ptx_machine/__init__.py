"""A machine that executes the shipped PTX on a CPU: it knows PTX's text, and nothing of Numba."""
