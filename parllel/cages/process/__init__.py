"""The machinery of worker processes behind `ProcessCage`."""
