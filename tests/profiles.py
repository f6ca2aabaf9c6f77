"""How many examples Hypothesis tries: profiles of the short run, the long run and the hunt.

`--hypothesis-profile=hunt` looks for what the others miss: new examples in each run, and many.
"""

from hypothesis import settings

settings.register_profile("short", max_examples=100, derandomize=True, deadline=None)
settings.register_profile("long", settings.get_profile("short"), max_examples=300)
settings.register_profile(
    "hunt", settings.get_profile("long"), max_examples=2000, derandomize=False, print_blob=True
)


def load(name: str) -> None:
    """Use a profile from here on: test modules that are imported later ask it."""
    settings.load_profile(name)


def count_examples(divisor: int = 1) -> int:
    """Return the profile's number of examples, or a part of it for a test that takes long."""
    return max(1, settings().max_examples // divisor)


def fewer_examples(divisor: int) -> settings:
    """Let a Hypothesis test try a part of the profile's examples."""
    return settings(max_examples=count_examples(divisor))
