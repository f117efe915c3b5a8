"""Steps of torch.optim's optimisers, compiled: twins of compute.training.optimizers.stepper.

No other machine code has these formulas; with torch, torch.optim's own are used. Import this module only if Numba is
installed.
"""

import math

from privacy_gate.arrays import Floats
from privacy_gate.native.compiler import compiled


@compiled
def sgd(head: Floats, gradient: Floats, momentum: Floats, settings: Floats, begin: bool) -> None:
    """torch.optim.SGD's step, in place. settings: rate, weight decay, momentum, 1 for Nesterov's.

    begin: whether this is the first step, whose momentum is the gradient itself.
    """
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
    """torch.optim.Adam's step in place, or AdamW's if the weight decay is `decoupled`; steps counts this one.

    mean and square are the two averages; settings: rate, weight decay, both betas, eps.
    """
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
