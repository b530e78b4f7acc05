"""Imports that name the extra they come from."""

import importlib
from types import ModuleType

from planet_lib._signals import ctrl_c_waits


def require(module: str, *, purpose: str) -> ModuleType:
    """Import a module of the `train` extra, or raise an `ImportError` that says how to install it.

    Example:
        >>> require("no_such_module", purpose="the video")
        Traceback (most recent call last):
            ...
        ImportError: the video needs no_such_module, which is not installed: pip install 'planet-worldmodel[train]' \
(from a checkout: pip install -e '.[train]')
    """
    try:
        with ctrl_c_waits():
            return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{purpose} needs {package}, which is not installed: pip install 'planet-worldmodel[train]' "
            "(from a checkout: pip install -e '.[train]')"
        ) from error
