"""Test suites of the promises that every Array, tree, storage and cage keeps."""
