"""When to stop adding pairs: bounds of t at every look that together keep one error rate.

Lan and DeMets (Biometrika 70, 1983): the error that may be spent by n of N pairs is fixed beforehand, here 5 % · n / N
(Kim and DeMets 1987, ρ = 1). The bounds are exact for Student's t, not the normal ones (Jennison and Turnbull 1991):
the path of t under no difference hangs on neither mean nor spread, so it is simulated once. `mean_interval` with these
bounds is a repeated confidence interval (Jennison and Turnbull 1989): in 95 % of sweeps, all of them hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ERROR = 0.05  # of deciding at any look where there is no difference
RESERVE = 0.001  # of it, for the error of the simulation: 0.0005 is one standard deviation
PATHS, SEED = 200_000, 20_260_101


def bounds(first: int, most: int) -> tuple[float, ...]:
    """Of |t| at the looks after first, first + 1, …, most pairs.

    Raises: ValueError unless 2 <= first <= most.
    """
    if not 2 <= first <= most:
        raise ValueError(f"first={first}, most={most}: looks begin with two pairs or more and end with the last")
    draws, found, spent = np.random.default_rng(SEED), [], 0
    total, squares, going = np.zeros(PATHS), np.zeros(PATHS), np.ones(PATHS, dtype=bool)
    for pairs in range(1, most + 1):
        values = draws.standard_normal(PATHS)
        total += values
        squares += values**2
        if pairs < first:
            continue
        sizes = _t(total, squares, pairs)
        allowed = int((ERROR - RESERVE) * pairs / most * PATHS)
        left = sizes[going]
        place = len(left) - (allowed - spent)
        bound = float(np.partition(left, place)[place])
        going &= sizes < bound
        spent = allowed
        found.append(bound)
    return tuple(found)


def _t(total: NDArray[np.float64], squares: NDArray[np.float64], pairs: int) -> NDArray[np.float64]:
    """|t| of each path, from the sums of its values and of their squares."""
    variance = (squares - total**2 / pairs) / (pairs - 1)
    sizes: NDArray[np.float64] = np.abs(total) / np.sqrt(pairs * variance)
    return sizes
