"""The two kinds of failure a user meets: what they can mend, and what went wrong while running."""


class AlignctlError(Exception):
    """A failure that is explained by its message and needs no traceback.

    Attributes:
        message: Names the culprit (file, line or key), what was found, and the rule.
        hint: What to do about it, or None when the message says it all.
        exit_code: The exit code of the process that reports it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(AlignctlError):
    """The command, the configuration or an input file is wrong: exit code 2."""

    exit_code = 2


class TakenError(UserError):
    """What was to be written is there already."""


class RunError(AlignctlError):
    """The run itself failed (a loss that is not finite, a full disk): exit code 1."""

    exit_code = 1


class LostError(RunError):
    """A process or a node was lost: the same command may well succeed when it is repeated."""
