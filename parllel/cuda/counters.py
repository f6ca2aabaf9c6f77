"""Counters of what goes to a GPU and of what waits for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(slots=True)
class Counters:
    """How often something was done since the last reset.

    Counts are exact where one thread at a time works on the GPU, as in parllel's own loops.

    >>> before = Counters(launches=2)
    >>> Counters(launches=5, event_waits=1).since(before)
    Counters(launches=3, copies_to_device=0, bytes_to_device=0, copies_to_host=0, ...)

    Args:
        launches: kernels launched, without those of graphs; in `cuda.counters` also those that were
            captured and not launched.
        copies_to_device, bytes_to_device: copies from the host, and their bytes.
        copies_to_host, bytes_to_host: copies to the host, and their bytes.
        event_records: events recorded in a stream.
        event_waits: times that a stream was made to wait for an event; the host does not wait.
        event_synchronizations: times that the host waited for an event.
        stream_synchronizations: times that the host waited for all work of a stream.
        device_synchronizations: times that the host waited for the whole device. Nothing in
            parllel does; a simulation counts what other code does.
        graph_launches: graphs of captured work launched. parllel launches none; a simulation counts
            those of a program.
    """

    launches: int = 0
    copies_to_device: int = 0
    bytes_to_device: int = 0
    copies_to_host: int = 0
    bytes_to_host: int = 0
    event_records: int = 0
    event_waits: int = 0
    event_synchronizations: int = 0
    stream_synchronizations: int = 0
    device_synchronizations: int = 0
    graph_launches: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    def reset(self) -> None:
        """Set all counts to 0."""
        for field in fields(self):
            setattr(self, field.name, 0)

    def since(self, earlier: Counters) -> Counters:
        """Return what was counted after `earlier`, a copy made with `copy.copy`."""
        now, before = asdict(self), asdict(earlier)
        return Counters(**{name: now[name] - before[name] for name in now})


counters = Counters()
"""What went through `parllel.cuda` in this process. Work that other code hands to CuPy or torch is
not in it."""
