"""Vectorized environments with tensors: a dialect for each library, and what they share."""
