"""TreeRefusalsContract: the mistakes with trees that raise an error, and what the error says."""

from __future__ import annotations

import numpy as np
import pytest

from parllel.testing.contracts.tree_case import B, TreeCase
from parllel.testing.contracts.tree_values import Step, new_values
from parllel.tree import ArrayDict


class TreeRefusalsContract(TreeCase):
    """Which uses of a tree are refused, whatever memory it lives in.

    Example:
        >>> class TestTreesOnTheDevice(TreeRefusalsContract):
        ...     storage = "device"
    """

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"observation": 1, "action": 1}, r"^\W*names of the values: missing \['done'\]"),
            (
                {"observation": 1, "action": 1, "done": 1, "camera": 1},
                r"^\W*names of the values: missing \[\], unknown \['camera'\]",
            ),
            (
                {"observation": 1, "action": {"pinky": 1, "inky": 1}, "done": 1},
                r"^\W*action: names .* missing \['the_brain'\], unknown \['inky'\]",
            ),
            (
                Step(1, Step(1, 1, 1), 1),
                r"^\W*action: names .* missing \['pinky', 'the_brain'\], unknown \['observation'",
            ),
        ],
    )
    def test_wrong_names_raise_key_error_with_path_missing_and_unknown(
        self, values: object, message: str
    ) -> None:
        tree = self.tree()
        for index in (0, [0, 1]):
            with pytest.raises(KeyError, match=message):
                tree[index] = values

    @pytest.mark.parametrize("index", [0, [0, 1], ...], ids=str)
    def test_wrong_names_at_the_top_leave_the_tree_as_it_was(self, index: object) -> None:
        tree = self.tree()
        before = {path: values.copy() for path, values in self.values(tree).items()}
        with pytest.raises(KeyError):
            tree[index] = {"observation": 1, "action": 1}
        self.assert_holds(tree, before)

    @pytest.mark.parametrize("index", [0, [0]], ids=str)
    def test_errors_name_the_leaf(self, index: object) -> None:
        values = new_values(B) | {"action": {"pinky": np.zeros(7), "the_brain": 0}}
        with pytest.raises(ValueError, match=r"^action\.pinky: writing a value of shape \(7,\)"):
            self.tree()[index] = values
        short = ArrayDict({"long": self.array((9,)), "b": {"short": self.array((2,))}})
        with pytest.raises(IndexError, match=r"^b\.short: index 5 "):
            short[5]
        for outside in (5, [5, 0]):
            with pytest.raises(IndexError, match=r"^b\.short: "):
                short[outside] = 1
        with pytest.raises(TypeError, match=r"^observation: rotate: this Array is a view"):
            self.tree()[0].rotate()
