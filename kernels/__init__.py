"""Kernel bodies and what compiles them; imports no other parllel module."""
