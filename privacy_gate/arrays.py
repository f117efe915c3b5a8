"""Short names for types of NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Ints = NDArray[np.integer]
Names = NDArray[np.str_]
Arrays = Mapping[str, NDArray[Any]]
