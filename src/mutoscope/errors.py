"""The one exception that is the user's to fix."""


class UserError(ValueError):
    """Bad input or usage. The message is one sentence or two: what is wrong, what was found, what to do.

    The command line prints it without a traceback and exits with status 2.
    """
