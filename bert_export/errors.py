"""The ways a command can end badly, and the exit codes they map to."""


class Failure(Exception):
    """Printed as one line, without a traceback; ends the process with `exit_code`."""

    exit_code = 1


class StageError(Failure):
    """A stage of the pipeline ran and failed, e.g. an artifact's smoke test."""


class UserError(Failure):
    """Bad usage or bad input: the message tells the person what to change."""

    exit_code = 2


class GateRefused(Failure):
    """A retrained model was not good enough to be published."""

    exit_code = 3


class LockHeld(Failure):
    """Another process is at work where this one was to be."""

    exit_code = 4


class Damaged(Failure):
    """What is published is not what was published."""

    exit_code = 5


class Terminated(BaseException):
    """SIGTERM came: the step at hand was finished and its checkpoint saved.

    Like KeyboardInterrupt no Exception, so that nothing takes it for a failure.
    """

    exit_code = 143
