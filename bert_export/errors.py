"""The two ways a command can end badly, and the exit codes they map to."""


class UserError(Exception):
    """Bad usage or bad input: the message tells the person what to change.

    Printed without a traceback; the process exits with code 2.
    """


class StageError(Exception):
    """A stage of the pipeline ran and failed, e.g. an artifact's smoke test.

    Printed with the stage's name and without a traceback; the process exits with
    code 1.
    """
