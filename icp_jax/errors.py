"""The one exception for bad input: a single line saying what is wrong and what to do."""


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it and exits with 2."""
