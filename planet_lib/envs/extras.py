"""Whether an extra is installed, asked before anything is imported."""

import importlib.util


def require(*modules: str, extra: str) -> None:
    """Raise an `ImportError` that names `extra` unless all of `modules` are installed; imports none of them.

    Example:
        >>> require("numpy", extra="gym")
        >>> require("no_such_simulator", extra="dmc")
        Traceback (most recent call last):
            ...
        ImportError: no_such_simulator is not installed: pip install 'planet-worldmodel[dmc]' \
(from a checkout: pip install -e '.[dmc]')
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            remedy = f"pip install 'planet-worldmodel[{extra}]' (from a checkout: pip install -e '.[{extra}]')"
            raise ImportError(f"{module} is not installed: {remedy}")
