"""Check that a sample tree has the form in which environments give rewards and flags to agents."""

from __future__ import annotations

from parllel.cages import AgentForm
from parllel.tree import ArrayDict, leaves_of, path_text

_OF_AGENTS, _FLAGS = ("reward", "valid"), ("terminated", "truncated")


def check_agent_rows(form: AgentForm, samples: ArrayDict, builder: str) -> None:
    """Refuse a tree whose rewards and flags have another form than the environments' agents.

    Args:
        form: that of the environments.
        samples: the tree of a sampler.
        builder: what makes a tree that fits, for the error.

    Raises:
        ValueError: `reward`, `terminated`, `truncated` or `valid` has another form.
    """
    for name in (*_OF_AGENTS, *_FLAGS):
        if name not in samples:
            continue
        is_for_each = form.has_flags or name == "reward"
        names = form.names if is_for_each and not form.is_axis else None
        n_agents = (len(form.names),) if is_for_each and form.is_axis else ()
        leaves = {path: tuple(leaf.shape[2:]) for path, leaf in leaves_of(samples[name])}
        paths = [()] if names is None else [(agent,) for agent in names]
        if leaves != dict.fromkeys(paths, n_agents):
            found = {path_text((name, *path)): shape for path, shape in leaves.items()}
            expected = (
                f"[T, B, {n_agents[0]}]"
                if n_agents
                else f"[T, B] for each of {list(names)}"
                if names
                else "[T, B]"
            )
            raise ValueError(
                f"samples: got {found}, the shapes behind (T, B), expected {name} {expected}, as"
                f" the environments' agents have it; {builder} makes such a tree"
            )
