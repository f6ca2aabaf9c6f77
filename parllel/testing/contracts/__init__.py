"""What every Array, tree, storage and cage promises, as test suites."""
