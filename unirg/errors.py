"""The one exception that a user's mistake raises; the command line turns it into exit code 2."""


class UserError(Exception):
    """Bad input or environment: what was wrong, with which value, and what to do.

    The text never holds a report's content or a patient's identifier. The CLI prints it without a
    traceback and exits with 2; any other exception is ours and exits with 1.
    """
