"""The states of environments: what is saved of one, of its wrappers and of its episode."""
