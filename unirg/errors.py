"""The exceptions that carry a message for the user; the command line turns them into exit code 2."""


class UserError(Exception):
    """Bad input or environment: what was wrong, with which value, and what to do.

    The text never holds a report's content or a patient's identifier. The CLI prints it without a
    traceback and exits with 2; any other exception is ours and exits with 1.
    """

    exit_code = 2


class Unavailable(UserError):
    """What may be there at the next attempt: a store, a judge. Who starts a training again does so then."""
