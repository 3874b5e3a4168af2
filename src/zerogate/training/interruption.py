"""How a run that was asked to stop says so. Imports nothing, so that the command can catch it before Lightning is loaded."""

from __future__ import annotations

import signal


class StoppedError(Exception):
    """A signal asked a run to stop, and its last.ckpt holds its state.

    Attributes:
        signum: the number of the signal.
        run: the run folder, whose text is what `resume=` takes.
    """

    def __init__(self, signum: int, run: object) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.run = signum, run
