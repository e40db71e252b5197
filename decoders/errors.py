"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """Something in the input is wrong: says what was found, what was expected and what to do.

    The command line prints the text alone, without a stack trace, and exits with code 2.
    """
