"""The machinery of `VectorCage`: a vector environment, whatever its autoreset mode."""
