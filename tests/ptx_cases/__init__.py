"""Random cases for the entries of the shipped PTX, each with a plain reference in NumPy."""
