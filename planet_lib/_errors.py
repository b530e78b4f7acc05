"""The library's own exception, which imports nothing: environments need no torch for it."""


class NonFiniteError(ValueError, FloatingPointError):
    """A number is NaN or infinite where it has to be finite; the message says which, and where it came from.

    It is both a `ValueError`, as every bad argument is, and a `FloatingPointError`. A run can leave out the update or
    the episode that raised it, and go on (`planet_lib.training.SkipNonFinite`).

    Example:
        >>> raise NonFiniteError("step 3: reward must be one finite number, got nan; the environment returned it")
        Traceback (most recent call last):
            ...
        planet_lib.NonFiniteError: step 3: reward must be one finite number, got nan; the environment returned it
    """


NonFiniteError.__module__ = "planet_lib"  # where users import it from
