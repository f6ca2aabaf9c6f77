"""How the threads of a launch share the rows of all leaves: who copies what. It copies nothing."""

from typing import NamedTuple

from parllel.kernels.targets import cuda

WARP = 32  # threads that a GPU executes together, as its warp


class Teams(NamedTuple):
    """How each block of a launch is divided; the last arguments of a kernel that copies rows.

    The table has wide leaves first, whose rows many threads share, and then narrow ones. The last
    `n_riders` threads of each block copy narrow leaves, all others copy wide ones: so narrow
    leaves need no blocks of their own. A block of at most `n_riders` threads copies both kinds as
    one team, and so does every block where there are no riders.
    """

    n_wide: int
    n_narrow: int
    wide_bits: int  # 2**wide_bits lanes share a row of a wide leaf
    narrow_bits: int
    n_riders: int


class Share(NamedTuple):
    """What a thread copies: lane `lane` of every `row_step`-th row, from `row` on.

    The rows of the team's leaves are counted through, leaf after leaf.
    """

    first_leaf: int
    n_leaves: int
    row: int
    row_step: int
    lane: int
    lanes: int
    mates: int  # of `find_mates`


def find_mates(thread: int, lane: int, lanes: int) -> int:
    """Return which lanes of a thread's warp share its row: a bit for each.

    The threads that share a row follow each other in a block, so that these lanes do, too. They do
    all the same until they copy, since all that they decide by is their row's: so they come to each
    exchange of words together, though other lanes of the warp may be elsewhere.

    Args:
        thread: number of the thread in its block.
        lane, lanes: of `Share`.
    """
    own = thread & (WARP - 1)
    first = max(own - lane, 0)
    last = min(own - lane + lanes, WARP) - 1
    return ((2 << (last - first)) - 1) << first


def find_share(teams: Teams) -> Share:
    """Return what this thread copies. Grid and block have one axis and may have any size.

    Everything follows from the launch's arguments: no load has to be waited for.
    """
    thread = cuda.threadIdx.x
    n_threads = cuda.blockDim.x - teams.n_riders
    first_leaf, n_leaves, bits = 0, teams.n_wide, teams.wide_bits
    if n_threads <= 0 or teams.n_riders == 0:
        n_threads = cuda.blockDim.x
        n_leaves += teams.n_narrow
    elif thread >= n_threads:
        thread -= n_threads
        n_threads = teams.n_riders
        first_leaf, n_leaves, bits = teams.n_wide, teams.n_narrow, teams.narrow_bits
    while 1 << bits > n_threads:
        bits -= 1
    rows = n_threads >> bits
    row = thread >> bits
    if row >= rows:  # too few threads are left over to share a row
        n_leaves = 0
    lanes = 1 << bits
    row += cuda.blockIdx.x * rows
    lane = thread & (lanes - 1)
    mates = find_mates(cuda.threadIdx.x, lane, lanes)
    return Share(first_leaf, n_leaves, row, cuda.gridDim.x * rows, lane, lanes, mates)


# What an entry needs of these, in the order of `DeviceEntry.parts`.
TEAM_PARTS = (find_mates, find_share)
