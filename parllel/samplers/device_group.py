"""DeviceGroup: a cage whose results stay on its device, and its columns of the sample tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from parllel.cages import Cage, Command, DeviceCage
from parllel.samplers.device_transfer import DeviceTransfer
from parllel.samplers.ends import Ends
from parllel.samplers.group import Group
from parllel.samplers.transfer import batch_shape_of
from parllel.tree import ArrayDict


class DeviceGroup(Group):
    """Step a `DeviceCage`; what it gives goes to the tree without the host.

    For each step a sampler calls `act` and `finish`, as for any `Group`; neither waits. What the
    host has to know of a batch, it asks for at the end (`end_batch`).

    Args:
        cages: one `DeviceCage`.
        samples: the sampler's tree, on the side of the cage's tensors.
        columns, options: as for `Group`; all columns.
    """

    transfer: DeviceTransfer

    def __init__(
        self, cages: Sequence[Cage], samples: ArrayDict, columns: range, **options: bool
    ) -> None:
        (cage,) = cages
        assert isinstance(cage, DeviceCage)
        cage.check_sums()
        self._cage = cage
        super().__init__(cages, samples, columns, **options)

    def _make_transfer(self, *, sleeps: bool) -> DeviceTransfer:
        return DeviceTransfer(self._samples)

    def _prepare_commands(self) -> list[list[Command]]:
        return []

    def _start(self, t: int) -> None:
        cage: Any = self.cages[0]  # that of a trace times it
        cage.start_on_device(self.transfer.action)

    def finish(self, t: int) -> None:
        """Bring the results of step t and observation t + 1 to the tree. Returns at once."""
        cage: Any = self.cages[0]
        step = cage.await_on_device()
        self.transfer.take_step(t, step if self.keeps_final else step._replace(final_obs=None))

    def collect_ready(self, t: int) -> None:
        """Do nothing: there is nothing to wait for."""

    def cut_obs(self, t: int) -> dict[int, Any]:
        """Return nothing: `end_batch` tells of the whole batch."""
        return {}

    def final_obs(self) -> dict[int, Any]:
        """Return nothing: `end_batch` tells of the whole batch."""
        return {}

    def end_batch(self, *, all_ends: bool) -> Ends | None:
        """Wait for the batch, sum up its episodes, and return the ends whose observations count.

        Args:
            all_ends: whether those of terminated episodes are wanted, too.

        Returns:
            The ends; None where there is none.

        Raises:
            RuntimeError: the environments keep last observations, and gave none of an end.
        """
        transfer = self.transfer
        reward, terminated, truncated = transfer.fetch()
        if transfer.left_out:
            self._cage.leave_out(transfer.left_out)
            transfer.left_out = []
        self._cage.sum_up(reward, terminated, truncated)
        is_cut = truncated & ~terminated
        steps, columns = np.nonzero(is_cut | terminated if all_ends else is_cut)
        if not len(steps) or not self.keeps_final:
            return None
        if self._cage.loses_final_obs:  # and the observation before stands for the last one
            source = self._samples["observation"]
        else:
            source = transfer.check_final(steps, columns)
        return Ends(steps, columns, is_cut[steps, columns], source)


def stays_on_device(cages: Sequence[Cage], samples: ArrayDict) -> bool:
    """Whether a group of these cages, and no other, needs no host: see `DeviceCage`."""
    if len(cages) != 1 or not isinstance(cages[0], DeviceCage) or "valid" in samples:
        return False
    leaves = [leaf for _, leaf in samples.walk()]
    if cages[0].side == "gpu":
        return not any(leaf.is_on_host for leaf in leaves)
    return all(leaf.is_on_host and not leaf.is_for_gpu for leaf in leaves)


def group_of(
    cages: Sequence[Cage],
    samples: ArrayDict,
    columns: range,
    *,
    takes_device_results: bool,
    **options: bool,
) -> Group:
    """Return the group that suits cages and the memory of a tree.

    Args:
        cages, samples, columns, options: as for `Group`.
        takes_device_results: whether the sampler asks for what `DeviceGroup.end_batch` returns.
    """
    is_all = len(columns) == batch_shape_of(samples)[1] if cages else False
    if takes_device_results and is_all and stays_on_device(cages, samples):
        return DeviceGroup(cages, samples, columns, **options)
    return Group(cages, samples, columns, **options)
