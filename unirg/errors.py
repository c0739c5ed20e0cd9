"""The exceptions that carry a message for the user; the command line turns them into exit code 2."""


class UserError(Exception):
    """Bad input or environment: what was wrong, with which value, and what to do.

    The text never holds a report's content or a patient's identifier. The CLI prints it without a
    traceback and exits with 2; any other exception is ours and exits with 1.
    """


class Unavailable(UserError):
    """What may be there at the next attempt: a store, a judge, an endpoint. The CLI exits with 75
    (EX_TEMPFAIL), and who starts a stage again does so then."""
