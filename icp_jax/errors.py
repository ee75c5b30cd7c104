"""Exceptions for bad input. The message is one line: what is wrong and what to do."""


class InputError(ValueError):
    """Invalid input from the user. The command line prints it and exits with status 2."""


class Kept(InputError):
    """A run cannot continue; its finished blocks are kept for a later resume."""


class Infeasible(InputError):
    """A sparsity, alpha and beta that no allocation of zeros can give."""
