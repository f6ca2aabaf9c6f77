"""What can be wrong with PTX, or with what it does to memory: one class for each kind of fault."""


class PtxError(Exception):
    """A launch did what it must not do, or its text is not understood."""


class UnknownTextError(PtxError):
    """The machine does not know an instruction, a type or an operand: it guesses nothing."""


class OutOfBoundsError(PtxError):
    """An access reaches outside of all memory that is allocated."""


class MisalignedError(PtxError):
    """An access is not at a multiple of its size, which stops a GPU's program."""


class RaceError(PtxError):
    """Two threads of a launch use a byte so that the result depends on which is earlier."""


class EndlessError(PtxError):
    """Threads are not done after more steps than any launch needs."""


class DivergedError(PtxError):
    """Lanes of a warp wait for others that do not come, which stops a GPU's program."""


class UndefinedError(PtxError):
    """PTX leaves it open: division by 0, a register never written, a lane that is not there."""
