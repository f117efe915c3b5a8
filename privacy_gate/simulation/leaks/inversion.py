"""Inversion: what an update reveals about its training rows, for softmax heads on features. The server sees the update.

Axis letters, in addition to evidence.py: T updates, each attacked separately; V rows that an update was trained on;
K clients whose updates are visible only as a sum (1 without secure aggregation); S local steps of B rows; E = D + 1 (a
column of ones for the bias, last).

From the head w0 = `start`, with r = 1 - lr (decay + prox), local training ends at

    w - w0 = sum_s e_s sum_b weight_sb (onehot(y) - p)_sb x_sb' - decay tau w0,    e_s = lr r^(steps after s),

with tau the sum of all e_s. The effect of decay and prox is known and can be subtracted. The bias column is the same
sum without x, so it reveals how often each class occurs. A class that does not occur gets only the terms in p from
every row, so its ratio dW / db is a weighted mean of the rows: for a single row, that row itself (Geiping et al. 2020,
arXiv 2003.14053).

With client-level privacy, each client clips its update to norm `clip` and may add noise. Clipping multiplies all
effects of a client by one number, so ratios do not change.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from privacy_gate.simulation.cells import Privacy, Training

TURNS = 4
"""Number of alternating iterations between class frequencies and the mean predictions that they imply."""

APART = 0.1
"""Spread of the rows of a class at the start of the optimisation, relative to that of the server's own rows."""

BEYOND = 3.0
"""Standard deviations of noise that a class's bias must exceed for the class to count as certain to occur."""

STEP = 0.05
"""First step size of the optimisation, in standard deviations of the decorrelated coordinates."""

PRIOR = 0.01
"""Loss of a row that is one standard deviation from its class mean in every decorrelated coordinate."""


@dataclass(frozen=True, eq=False)
class BatchSchedule:
    """Which rows each client trained on at each step of the attacked updates, and each client's weight in the sum.

    place   (T, K, S, B)  int64, index among the V rows
    weight  (T, K, S, B)  each row's share of its step's loss; 0 for padding
    share   (T, K)        weight of each client's update in the visible sum
    """

    place: torch.Tensor
    weight: torch.Tensor
    share: torch.Tensor

    def effect(self, training: Training) -> torch.Tensor:
        """Factor of each row's gradient in the visible update, (T, K, S, B): e_s * weight * share, see the module."""
        active = self.weight.sum(-1) > 0
        # Number of active steps after each step: a cumulative sum from the end.
        after = active.flip(-1).cumsum(-1).flip(-1) - active.long()
        kept = self.weight.new_tensor(1 - training.lr * (training.decay + training.prox))
        return training.lr * kept ** after.unsqueeze(-1) * self.weight * self.share[:, :, None, None]

    def clipped(self, factor: torch.Tensor) -> "BatchSchedule":
        """The same schedule, with each client's update multiplied by its clipping factor (T, K)."""
        return replace(self, share=self.share * factor)


@dataclass(frozen=True, eq=False)
class AttackerRows:
    """The attacker's own rows, which no client trains on. All rows stand in for a class that has none.

    features  (n, D)
    label     (n,)
    classes   C
    """

    features: torch.Tensor
    label: torch.Tensor
    classes: int

    def of(self, label: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Random own rows (T, V, D) of these classes (T, V); `draw` holds uniform numbers in [0, 1), (T, V)."""
        # Sorted by class, the rows of class c are `size[c]` consecutive ones from `first[c]`.
        order = torch.argsort(self.label, stable=True)
        size = torch.bincount(self.label, minlength=self.classes)
        first = size.cumsum(0) - size
        known = size[label] > 0
        among = torch.where(known, size[label], len(order))
        place = torch.where(known, first[label], 0) + (draw * among).long()
        return self.features[order[place]]

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean row of each class (C, D); for a class without rows, the mean of all rows."""
        chosen = torch.nn.functional.one_hot(self.label, self.classes).to(self.features)
        chosen[:, chosen.sum(0) == 0] = 1.0
        return chosen.T @ self.features / chosen.sum(0).unsqueeze(1)

    @cached_property
    def metric(self) -> torch.Tensor:
        """A matrix (D, D) that decorrelates rows within a class: features @ metric has covariance 1 within classes.

        The inverse square root of the within-class covariance, shrunk as in Chen et al. 2010 (arXiv 0907.4698, eq. 23).
        """
        rows, width = self.features.shape
        rest = self.features - self.mean[self.label]
        covariance = rest.T @ rest / rows
        trace, square = covariance.trace(), (covariance**2).sum()
        if not trace > 0:  # rows of a class are identical: there is nothing to decorrelate
            return torch.eye(width).to(self.features)
        # Oracle approximating shrinkage towards trace / D times the identity.
        above = (1 - 2 / width) * square + trace**2
        below = (rows + 1 - 2 / width) * (square - trace**2 / width)
        shrunk = min(1.0, float(above / below)) if below > 0 else 1.0
        values, vectors = torch.linalg.eigh(covariance)
        values = (1 - shrunk) * values.clamp(min=0) + shrunk * trace / width
        root: torch.Tensor = (vectors / values.sqrt()) @ vectors.T
        return root


def with_bias(features: torch.Tensor) -> torch.Tensor:
    """Features (..., D) with a one appended for the bias, (..., E)."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def local_update(
    features: torch.Tensor, label: torch.Tensor, batches: BatchSchedule, start: torch.Tensor, training: Training
) -> torch.Tensor:
    """The update (T, C, E) that the server sees if clients train from `start` (C, E) on rows (T, V, E), label (T, V).

    Repeats the clients' algorithm (local.py) in a form that can be differentiated with respect to the rows. No noise.
    """
    updates = trained(features, label, batches, start, training)
    return _summed(updates, batches.share * clip_factors(updates, training.privacy))


def trained(
    features: torch.Tensor, label: torch.Tensor, batches: BatchSchedule, start: torch.Tensor, training: Training
) -> torch.Tensor:
    """Each client's update before clipping, (T, K, C, E); arguments as in `local_update`."""
    updates, clients, steps, size = batches.place.shape
    classes, width = start.shape
    local = start.expand(updates, clients, classes, width)
    truth = torch.nn.functional.one_hot(label, classes).to(features)
    for step in range(steps):
        chosen = batches.place[:, :, step].reshape(updates, -1, 1)
        x = features.gather(1, chosen.expand(-1, -1, width)).view(updates, clients, size, width)
        y = truth.gather(1, chosen.expand(-1, -1, classes)).view(updates, clients, size, classes)
        weight = batches.weight[:, :, step].unsqueeze(-1)
        error = weight * ((x @ local.mT).softmax(-1) - y)
        gradient = error.mT @ x
        if training.decay or training.prox:  # padding steps must not decay a client that has finished
            active = (weight.sum(2, keepdim=True) > 0).to(features)
            gradient = gradient + active * (training.decay * local + training.prox * (local - start))
        local = local - training.lr * gradient
    return local - start


def clip_factors(updates: torch.Tensor, privacy: Privacy | None) -> torch.Tensor:
    """The factor (T, K) by which privacy clips each client's update (T, K, C, E); 1 without privacy."""
    if privacy is None:
        return updates.new_ones(updates.shape[:2])
    length = updates.flatten(2).norm(dim=2).clamp(min=torch.finfo(updates.dtype).tiny)
    factor: torch.Tensor = (privacy.clip / length).clamp(max=1)
    return factor


def _summed(updates: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The sum (T, C, E) of updates (T, K, C, E) over clients, weighted by share (T, K)."""
    return (share[:, :, None, None] * updates).sum(1)


@dataclass(frozen=True, eq=False)
class Leak:
    """What a server reconstructs from each update in closed form.

    features  (T, C, D)  mean row of each class, weighted by the rows' effects
    label     (T, V)     class of each row, in ascending order
    """

    features: torch.Tensor
    label: torch.Tensor


def leak(
    seen: torch.Tensor,
    guess: BatchSchedule,
    start: torch.Tensor,
    training: Training,
    own: AttackerRows,
    draw: torch.Tensor,
) -> Leak:
    """The analytic attack on updates `seen` (T, C, E).

    guess  the batches as the server assumes them: it knows their sizes, but not which row is in which batch
    draw   (T, V) uniform numbers in [0, 1), with which the server draws its own rows

    With mass_c the sum of the effects of the rows of class c, and q_c the mean prediction, db_c = mass_c - tau q_c and
    dW_c = mass_c mean_c - tau q_c mean. This assumes that p and x are uncorrelated; for one step from a head of zeros
    (p = 1/C) it is exact. The mean of all rows is dW / db of the classes that do not occur; if all classes occur, the
    mean of the server's own rows is used. After the first step q is not visible: the server trains on its own rows with
    the class frequencies that q implies, takes q from that training, and iterates. The clipping factors of the clients
    are estimated in the same way.

    If clients add noise, masses are recomputed from the estimated class counts, which are free of noise.
    """
    noise, rows = noise_scale(guess.share, training).unsqueeze(1), draw.shape[1]
    predicted = (with_bias(own.features) @ start.T).softmax(1).mean(0).expand_as(seen[..., -1])
    batches = guess
    for _ in range(TURNS):
        _, tau, gradient = _effects(seen, batches, start, training)
        bias = gradient[..., -1]
        label = labels(counts(bias + tau * predicted, rows, certain(bias, noise, rows)), rows)
        # Replay the clients' training on the attacker's rows with these labels, and solve db = mass - tau q for q.
        updates = trained(with_bias(own.of(label, draw)), label, guess, start, training)
        batches = guess.clipped(clip_factors(updates, training.privacy))
        effect, tau, _ = _effects(seen, batches, start, training)
        replayed = _summed(updates, batches.share)
        predicted = (_mass(label, batches, effect, len(start)) - replayed[..., -1]) / tau - training.decay * start[
            :, -1
        ]
    effect, tau, gradient = _effects(seen, batches, start, training)
    weight, bias = gradient[..., :-1], gradient[..., -1]
    lightest = torch.where(effect > 0, effect, torch.inf).amin((1, 2, 3)).unsqueeze(1)
    mass = bias + tau * predicted
    number = counts(mass, rows, certain(bias, noise, rows))
    label = labels(number, rows)
    mass = torch.where(noise > 0, _mass(label, batches, effect, len(start)), mass)
    mean = _ratio(weight, bias, (number == 0) & (bias < 0), own)
    sums = weight + (tau * predicted).unsqueeze(2) * mean.unsqueeze(1)
    # An occurring class has at least the mass of its lightest row; a tenth of that keeps absent classes from 0 / 0.
    return Leak(sums / mass.clamp(min=lightest / 10).unsqueeze(2), label)


def noise_scale(share: torch.Tensor, training: Training) -> torch.Tensor:
    """Standard deviation (T,) of the noise in each coordinate of the visible update; share (T, K) weights the clients.

    If clients add the noise, each client asked in a round adds noise_multiplier * clip / sqrt(clients asked). Otherwise
    the result is 0.
    """
    privacy = training.privacy
    if privacy is None or not privacy.by_clients:
        return share.new_zeros(len(share))
    per_client = privacy.noise_multiplier * privacy.clip / math.sqrt(sum(training.asked(0)))
    return per_client * share.square().sum(1).sqrt()


def certain(bias: torch.Tensor, noise: torch.Tensor, rows: int) -> torch.Tensor:
    """Classes that certainly occur, (T, C): their bias (T, C) rose beyond the noise (T, 1); at most `rows` classes."""
    # Only rows of a class raise its bias. With noise more classes than rows may pass: the largest biases win.
    rank = torch.argsort(torch.argsort(bias, dim=1, descending=True, stable=True), dim=1)
    return (bias > BEYOND * noise) & (rank < rows)


def _effects(
    seen: torch.Tensor, batches: BatchSchedule, start: torch.Tensor, training: Training
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Effects (T, K, S, B), their sum tau (T, 1), and the visible update with weight decay removed, (T, C, E)."""
    effect = batches.effect(training)
    tau = effect.sum((1, 2, 3)).unsqueeze(1)
    return effect, tau, seen + training.decay * tau.unsqueeze(2) * start


def counts(mass: torch.Tensor, rows: int, sure: torch.Tensor) -> torch.Tensor:
    """Estimated number of rows of each class, (T, C), from mass (T, C); sums to `rows`.

    Proportional to mass, rounded by largest remainders. Each class that certainly occurs, sure (T, C), gets at least
    one row: those are the classes whose bias rose (Zhao et al. 2020, arXiv 2001.02610).
    """
    share = mass.clamp(min=0)
    share = torch.where(share.sum(1, keepdim=True) > 0, share, 1.0)  # noise may leave every class without mass
    tiny = torch.finfo(mass.dtype).tiny
    exact = share / share.sum(1, keepdim=True).clamp(min=tiny) * rows
    left = rows - sure.sum(1, keepdim=True)
    more = (exact - sure.to(exact)).clamp(min=0)
    more = more / more.sum(1, keepdim=True).clamp(min=tiny) * left
    # Rounding errors must not decide: near-integers are snapped to integers before remainders are ranked.
    whole = torch.where((more - more.round()).abs() < 1e-6, more.round(), more.floor())
    rest = left - whole.sum(1, keepdim=True).long()
    rank = torch.argsort(torch.argsort(more - whole, dim=1, descending=True, stable=True), dim=1)
    return sure.long() + whole.long() + (rank < rest)


def labels(number: torch.Tensor, rows: int) -> torch.Tensor:
    """Class labels (T, V = rows) in ascending order, with number (T, C) rows of each class."""
    place = torch.arange(rows, device=number.device).expand(len(number), -1).contiguous()
    return torch.searchsorted(number.cumsum(1), place, right=True)


def _mass(label: torch.Tensor, batches: BatchSchedule, effect: torch.Tensor, classes: int) -> torch.Tensor:
    """Sum of the effects (T, K, S, B) of the rows of each class, (T, C)."""
    row_class = label.gather(1, batches.place.flatten(1))
    return effect.new_zeros(len(label), classes).scatter_add_(1, row_class, effect.flatten(1))


def _ratio(weight: torch.Tensor, bias: torch.Tensor, absent: torch.Tensor, own: AttackerRows) -> torch.Tensor:
    """Mean row (T, D): dW / db, both summed over the absent classes (T, C); mean of own rows if none is absent."""
    chosen = absent.to(weight)
    total_bias = (chosen * bias).sum(1, keepdim=True)
    ratio = (chosen.unsqueeze(1) @ weight).squeeze(1) / torch.where(total_bias < 0, total_bias, -1.0)
    return torch.where(total_bias < 0, ratio, own.features.mean(0))


def refine(
    seen: torch.Tensor,
    first: Leak,
    guess: BatchSchedule,
    start: torch.Tensor,
    training: Training,
    own: AttackerRows,
    draw: torch.Tensor,
    turns: int,
) -> torch.Tensor:
    """The optimisation attack: rows (T, V, D) whose training yields updates in the direction of those `seen`.

    Cosine loss and signed Adam; the step size falls to a tenth after 3/8, 5/8 and 7/8 of the turns; returns the best
    rows of all turns: Geiping et al. 2020. It starts from the result of the analytic attack, with the rows of a class
    spread a little, in the directions in which the server's own rows differ. Their total variation prior is for pixels;
    the prior for features is the distance from the mean row of the class, in `AttackerRows.metric`.
    """
    chosen = torch.nn.functional.one_hot(first.label, len(start)).to(seen)
    size = chosen.sum(1).clamp(min=1).unsqueeze(2)
    around = APART * own.of(first.label, draw)
    # Move the spread rows so that their class means are those of the analytic attack.
    best = around + chosen @ (first.features - chosen.mT @ around / size)
    centre, back = own.mean[first.label], torch.linalg.inv(own.metric)
    # Optimise in decorrelated coordinates, in which one step size suits all of them.
    apart = ((best - centre) @ own.metric).requires_grad_()
    adam = torch.optim.Adam([apart], lr=STEP)
    drop = torch.optim.lr_scheduler.MultiStepLR(adam, [turns * part // 8 for part in (3, 5, 7)], 0.1)
    lowest = seen.new_full((len(seen),), torch.inf)
    for _ in range(turns):
        rows = centre + apart @ back
        update = local_update(with_bias(rows), first.label, guess, start, training)
        cosine = torch.nn.functional.cosine_similarity(update.flatten(1), seen.flatten(1))
        loss = 1 - cosine + PRIOR * (apart**2).mean((1, 2))
        better = loss.detach() < lowest
        lowest = torch.where(better, loss.detach(), lowest)
        best = torch.where(better[:, None, None], rows.detach(), best)
        # The T updates are independent, so the gradient of the summed loss holds the gradient of each.
        (gradient,) = torch.autograd.grad(loss.sum(), apart)
        apart.grad = gradient.sign()
        adam.step()
        drop.step()
    return best


def likeness(
    reconstructed: torch.Tensor, candidates: torch.Tensor, centre: torch.Tensor, metric: torch.Tensor
) -> torch.Tensor:
    """Largest cosine (T, m) of any reconstructed row (T, F, D) with each candidate (T, m, D).

    The cosine compares differences from the mean row of the class, centre (T, D), in a metric (D, D) that decorrelates
    rows of a class: without it, the directions that all rows share outweigh what distinguishes them. Reconstructed
    rows of NaN are ignored.
    """
    left, right = ((rows - centre.unsqueeze(1)) @ metric for rows in (reconstructed, candidates))
    cosine = torch.nn.functional.normalize(left, dim=-1) @ torch.nn.functional.normalize(right, dim=-1).mT
    return torch.nan_to_num(cosine, nan=-torch.inf).amax(1)
