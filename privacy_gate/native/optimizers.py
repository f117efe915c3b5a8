"""The steps of torch.optim's optimisers for one head, compiled: twins of compute.training.optimizers.stepper.

This is the only place in native with these formulas. Imported only where Numba is installed.
"""

import math

from privacy_gate.arrays import Floats
from privacy_gate.native.compiler import compiled


@compiled
def sgd(head: Floats, gradient: Floats, momentum: Floats, settings: Floats, begin: bool) -> None:
    """torch.optim.SGD's step, in place; its momentum begins with the first gradient."""
    number = head.dtype.type
    lr, decay, keep, nesterov = number(settings[0]), number(settings[1]), number(settings[2]), settings[3] > 0
    if keep == 0:
        for i in range(head.size):
            head[i] -= lr * (gradient[i] + decay * head[i])
        return
    old = number(0) if begin else keep
    for i in range(head.size):
        slope = gradient[i] + decay * head[i]
        momentum[i] = old * momentum[i] + slope
        head[i] -= lr * (slope + keep * momentum[i] if nesterov else momentum[i])


@compiled
def adam(
    head: Floats, gradient: Floats, mean: Floats, square: Floats, settings: Floats, decoupled: bool, steps: int
) -> None:
    """torch.optim.Adam's step, or AdamW's, whose decay is `decoupled`, in place; steps counts this one."""
    number = head.dtype.type
    lr, decay, first, second, eps = settings
    shrink = number(1 - lr * decay) if decoupled else number(1)
    pull = number(0) if decoupled else number(decay)
    rate = number(lr / (1 - first**steps))
    scale, least = number(1 / math.sqrt(1 - second**steps)), number(eps)
    old, new, kept, added = number(first), number(1 - first), number(second), number(1 - second)
    for i in range(head.size):
        slope = gradient[i] + pull * head[i]
        average, spread = old * mean[i] + new * slope, kept * square[i] + added * slope * slope
        mean[i], square[i] = average, spread
        head[i] = shrink * head[i] - rate * average / (math.sqrt(spread) * scale + least)
