"""The exceptions for bad input: a single line saying what is wrong and what to do."""


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it and exits with 2."""


class Kept(InputError):
    """A run cannot go on now, and what it had finished is worth keeping."""
