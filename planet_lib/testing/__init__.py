"""Contracts: what the library relies on, as checks to run on parts of your own.

For the tests of whoever writes a part. Nothing else of the library imports it. A check either returns, or raises a
`ContractError` that names what was expected, what came, and what to do.
"""

from planet_lib.testing.cell import check_cell
from planet_lib.testing.contract import ContractError
from planet_lib.testing.dynamics import check_dynamics
from planet_lib.testing.env import check_env

__all__ = ["ContractError", "check_cell", "check_dynamics", "check_env"]
