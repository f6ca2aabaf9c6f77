"""The values of environments: what is checked of them, and how they become rows and actions."""
