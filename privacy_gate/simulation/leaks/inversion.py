"""What an update tells of the rows it was made from: softmax heads on features, whose updates a server sees.

Axis letters, besides those of evidence.py: T updates that are attacked, each on its own; V rows that an update was made
from; K clients whose updates are seen as one sum (1 without secure aggregation); S local steps of B rows; E = D + 1 (a
bias of ones, last).

From the head w0 = `start`, with r = 1 - lr (decay + prox), local training ends at

    w - w0 = sum_s e_s sum_b weight_sb (onehot(y) - p)_sb x_sb' - decay tau w0,    e_s = lr r^(steps after s),

tau the sum of all e_s: what decay and prox do is known and can be taken out. Bias columns are the same sum without x,
so they tell how often each class occurs; and to a class that does not occur every row adds by p alone, so its dW / db
is the mean row: for a single row, that row (Geiping et al. 2020, arXiv 2003.14053).

With privacy of clients each of them sends clip / |update| of an update longer than clip, and perhaps noise of its own.
To shorten is to multiply all effects of a client by one number, which leaves ratios as they are.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from privacy_gate.simulation.cells import Privacy, Training

TURNS = 4
"""How often the shares of classes and the predictions that they lead to are computed from each other."""

APART = 0.1
"""How far apart rows of a class start in the optimisation, where the server's own are 1 apart."""

BEYOND = 3.0
"""Standard deviations of noise beyond which a class is taken to occur."""

STEP = 0.05
"""Its first step, in standard deviations of uncorrelated coordinates."""

PRIOR = 0.01
"""What a row that is a standard deviation from its class's mean in every coordinate adds to the loss."""


@dataclass(frozen=True, eq=False)
class Made:
    """How each update was made, as far as batches go.

    place   (T, K, S, B)  int64, which of the V rows
    weight  (T, K, S, B)  each row's share of its step's loss; 0 where there is none
    share   (T, K)        what each client's update counts for in what is seen
    """

    place: torch.Tensor
    weight: torch.Tensor
    share: torch.Tensor

    def effect(self, training: Training) -> torch.Tensor:
        """What each row's gradient counts for in what is seen, (T, K, S, B): see the module."""
        active = self.weight.sum(-1) > 0
        after = active.flip(-1).cumsum(-1).flip(-1) - active.long()
        kept = self.weight.new_tensor(1 - training.lr * (training.decay + training.prox))
        return training.lr * kept ** after.unsqueeze(-1) * self.weight * self.share[:, :, None, None]

    def shortened(self, left: torch.Tensor) -> "Made":
        """The same where so much (T, K) is left of each client's update."""
        return replace(self, share=self.share * left)


@dataclass(frozen=True, eq=False)
class Own:
    """Rows that the attacker has: nobody trains on them. Every class needs some; where it has none, all stand in.

    features  (n, D)
    label     (n,)
    classes   C
    """

    features: torch.Tensor
    label: torch.Tensor
    classes: int

    def of(self, label: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        """Rows (T, V, D) of these classes (T, V), drawn by numbers 0 <= draw < 1 of the same shape."""
        order = torch.argsort(self.label, stable=True)
        size = torch.bincount(self.label, minlength=self.classes)
        first = size.cumsum(0) - size
        known = size[label] > 0
        among = torch.where(known, size[label], len(order))
        place = torch.where(known, first[label], 0) + (draw * among).long()
        return self.features[order[place]]

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean row of each class (C, D); of all, for a class without rows."""
        chosen = torch.nn.functional.one_hot(self.label, self.classes).to(self.features)
        chosen[:, chosen.sum(0) == 0] = 1.0
        return chosen.T @ self.features / chosen.sum(0).unsqueeze(1)

    @cached_property
    def metric(self) -> torch.Tensor:
        """A matrix (D, D) by which rows of one class become uncorrelated: features @ it.

        Root of the inverse of the covariance within classes, shrunk as Chen et al. 2010 (arXiv 0907.4698, eq. 23) do.
        """
        rows, width = self.features.shape
        rest = self.features - self.mean[self.label]
        covariance = rest.T @ rest / rows
        trace, square = covariance.trace(), (covariance**2).sum()
        if not trace > 0:
            return torch.eye(width).to(self.features)
        above = (1 - 2 / width) * square + trace**2
        below = (rows + 1 - 2 / width) * (square - trace**2 / width)
        shrunk = min(1.0, float(above / below)) if below > 0 else 1.0
        values, vectors = torch.linalg.eigh(covariance)
        values = (1 - shrunk) * values.clamp(min=0) + shrunk * trace / width
        root: torch.Tensor = (vectors / values.sqrt()) @ vectors.T
        return root


def with_bias(features: torch.Tensor) -> torch.Tensor:
    """Features (..., D) and a one, (..., E)."""
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def local_update(
    features: torch.Tensor, label: torch.Tensor, made: Made, start: torch.Tensor, training: Training
) -> torch.Tensor:
    """What the server sees, (T, C, E), of clients that train from `start` (C, E) on rows (T, V, E) of classes (T, V).

    The clients' own algorithm (local.py), here so that it can be differentiated by the rows. Without noise.
    """
    each = trained(features, label, made, start, training)
    return _joined(each, made.share * reach(each, training.privacy))


def trained(
    features: torch.Tensor, label: torch.Tensor, made: Made, start: torch.Tensor, training: Training
) -> torch.Tensor:
    """How far training takes each client, (T, K, C, E), unshortened; arguments as of `local_update`."""
    updates, clients, steps, size = made.place.shape
    classes, width = start.shape
    local = start.expand(updates, clients, classes, width)
    truth = torch.nn.functional.one_hot(label, classes).to(features)
    for step in range(steps):
        chosen = made.place[:, :, step].reshape(updates, -1, 1)
        x = features.gather(1, chosen.expand(-1, -1, width)).view(updates, clients, size, width)
        y = truth.gather(1, chosen.expand(-1, -1, classes)).view(updates, clients, size, classes)
        weight = made.weight[:, :, step].unsqueeze(-1)
        error = weight * ((x @ local.mT).softmax(-1) - y)
        gradient = error.mT @ x
        if training.decay or training.prox:  # a client whose steps are over stays where it is
            active = (weight.sum(2, keepdim=True) > 0).to(features)
            gradient = gradient + active * (training.decay * local + training.prox * (local - start))
        local = local - training.lr * gradient
    return local - start


def reach(updates: torch.Tensor, privacy: Privacy | None) -> torch.Tensor:
    """What is left of each client's update (T, K, C, E) once it is as short as privacy demands, (T, K)."""
    if privacy is None:
        return updates.new_ones(updates.shape[:2])
    length = updates.flatten(2).norm(dim=2).clamp(min=torch.finfo(updates.dtype).tiny)
    left: torch.Tensor = (privacy.clip / length).clamp(max=1)
    return left


def _joined(updates: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The sum (T, C, E) of updates (T, K, C, E), of which these shares (T, K) count."""
    return (share[:, :, None, None] * updates).sum(1)


@dataclass(frozen=True, eq=False)
class Leak:
    """What a server makes of each update in closed form.

    features  (T, C, D)  mean row of each class, weighted as training weighted it
    label     (T, V)     class of each row, ascending
    """

    features: torch.Tensor
    label: torch.Tensor


def leak(
    seen: torch.Tensor, guess: Made, start: torch.Tensor, training: Training, own: Own, draw: torch.Tensor
) -> Leak:
    """The analytic attack on updates `seen` (T, C, E).

    guess  batches as the server imagines them: their sizes are known, who is in which is not
    draw   (T, V) numbers 0 <= draw < 1, by which it draws rows of its own

    With mass_c the sum of effects of the rows of class c and q_c the mean prediction, db_c = mass_c - tau q_c and
    dW_c = mass_c mean_c - tau q_c mean, where p and x are taken as uncorrelated (at a head of zeros p = 1/C, and after
    one step both hold exactly). The mean of all rows is dW / db of the classes that do not occur; where all occur, it
    is that of the server's own rows. q is not seen after the first step: it is that of the server's own rows, trained
    on in the shares that q implies, by turns. So is how far clients shortened what they sent.

    Where clients add noise, masses are those of the classes that were counted, which has no noise.
    """
    noise, rows = noise_seen(guess.share, training).unsqueeze(1), draw.shape[1]
    predicted = (with_bias(own.features) @ start.T).softmax(1).mean(0).expand_as(seen[..., -1])
    made = guess
    for _ in range(TURNS):
        _, tau, gradient = _effects(seen, made, start, training)
        bias = gradient[..., -1]
        label = labels(counts(bias + tau * predicted, rows, surely(bias, noise, rows)), rows)
        each = trained(with_bias(own.of(label, draw)), label, guess, start, training)
        made = guess.shortened(reach(each, training.privacy))
        effect, tau, _ = _effects(seen, made, start, training)
        replayed = _joined(each, made.share)
        predicted = (_mass(label, made, effect, len(start)) - replayed[..., -1]) / tau - training.decay * start[:, -1]
    effect, tau, gradient = _effects(seen, made, start, training)
    weight, bias = gradient[..., :-1], gradient[..., -1]
    lightest = torch.where(effect > 0, effect, torch.inf).amin((1, 2, 3)).unsqueeze(1)
    mass = bias + tau * predicted
    number = counts(mass, rows, surely(bias, noise, rows))
    label = labels(number, rows)
    mass = torch.where(noise > 0, _mass(label, made, effect, len(start)), mass)
    mean = _ratio(weight, bias, (number == 0) & (bias < 0), own)
    sums = weight + (tau * predicted).unsqueeze(2) * mean.unsqueeze(1)
    return Leak(sums / mass.clamp(min=lightest / 10).unsqueeze(2), label)


def noise_seen(share: torch.Tensor, training: Training) -> torch.Tensor:
    """Standard deviation (T,) of each coordinate's noise in what is seen, where these shares (T, K) of clients are.

    Each of the clients asked in a round adds noise_multiplier * clip / sqrt(their number), if any does.
    """
    privacy = training.privacy
    if privacy is None or not privacy.by_clients:
        return share.new_zeros(len(share))
    own = privacy.noise_multiplier * privacy.clip / math.sqrt(sum(training.asked(0)))
    return own * share.square().sum(1).sqrt()


def surely(bias: torch.Tensor, noise: torch.Tensor, rows: int) -> torch.Tensor:
    """Classes (T, C) that surely occur: their bias (T, C) rose beyond the noise (T, 1), and they are at most `rows`."""
    rank = torch.argsort(torch.argsort(bias, dim=1, descending=True, stable=True), dim=1)
    return (bias > BEYOND * noise) & (rank < rows)


def _effects(
    seen: torch.Tensor, made: Made, start: torch.Tensor, training: Training
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Effects (T, K, S, B), their sum tau (T, 1), and what is seen without what decay did, (T, C, E)."""
    effect = made.effect(training)
    tau = effect.sum((1, 2, 3)).unsqueeze(1)
    return effect, tau, seen + training.decay * tau.unsqueeze(2) * start


def counts(mass: torch.Tensor, rows: int, sure: torch.Tensor) -> torch.Tensor:
    """How many of the rows are of each class, (T, C), by mass (T, C).

    As many as its share, by largest remainders so that they add up, and one at least of each class that surely occurs:
    sure (T, C), those whose bias rose (Zhao et al. 2020, arXiv 2001.02610).
    """
    share = mass.clamp(min=0)
    share = torch.where(share.sum(1, keepdim=True) > 0, share, 1.0)  # noise may leave no class any
    tiny = torch.finfo(mass.dtype).tiny
    exact = share / share.sum(1, keepdim=True).clamp(min=tiny) * rows
    left = rows - sure.sum(1, keepdim=True)
    more = (exact - sure.to(exact)).clamp(min=0)
    more = more / more.sum(1, keepdim=True).clamp(min=tiny) * left
    # What is whole up to rounding is whole; remainders are ranked after that.
    whole = torch.where((more - more.round()).abs() < 1e-6, more.round(), more.floor())
    rest = left - whole.sum(1, keepdim=True).long()
    rank = torch.argsort(torch.argsort(more - whole, dim=1, descending=True, stable=True), dim=1)
    return sure.long() + whole.long() + (rank < rest)


def labels(number: torch.Tensor, rows: int) -> torch.Tensor:
    """Classes (T, V = rows), so many of each (T, C), ascending."""
    place = torch.arange(rows, device=number.device).expand(len(number), -1).contiguous()
    return torch.searchsorted(number.cumsum(1), place, right=True)


def _mass(label: torch.Tensor, made: Made, effect: torch.Tensor, classes: int) -> torch.Tensor:
    """Sum of the effects of the rows of each class, (T, C)."""
    own = label.gather(1, made.place.flatten(1))
    return effect.new_zeros(len(label), classes).scatter_add_(1, own, effect.flatten(1))


def _ratio(weight: torch.Tensor, bias: torch.Tensor, absent: torch.Tensor, own: Own) -> torch.Tensor:
    """Mean row (T, D): dW / db of the absent classes (T, C) together; that of own rows where none is absent."""
    chosen = absent.to(weight)
    below = (chosen * bias).sum(1, keepdim=True)
    found = (chosen.unsqueeze(1) @ weight).squeeze(1) / torch.where(below < 0, below, -1.0)
    return torch.where(below < 0, found, own.features.mean(0))


def refine(
    seen: torch.Tensor,
    first: Leak,
    guess: Made,
    start: torch.Tensor,
    training: Training,
    own: Own,
    draw: torch.Tensor,
    turns: int,
) -> torch.Tensor:
    """The optimisation attack: rows (T, V, D) whose training makes updates that point where those `seen` do.

    Cosine loss and signed Adam, steps a tenth as long after 3/8, 5/8 and 7/8 of the turns, and the best rows on the
    way: Geiping et al. 2020. It starts where the analytic attack ends, rows of a class set a little apart as the
    server's own are. Total variation is for pixels; what keeps features likely is their distance from the mean row of
    the class, by `Own.metric`.
    """
    chosen = torch.nn.functional.one_hot(first.label, len(start)).to(seen)
    size = chosen.sum(1).clamp(min=1).unsqueeze(2)
    around = APART * own.of(first.label, draw)
    best = around + chosen @ (first.features - chosen.mT @ around / size)
    centre, back = own.mean[first.label], torch.linalg.inv(own.metric)
    apart = ((best - centre) @ own.metric).requires_grad_()
    adam = torch.optim.Adam([apart], lr=STEP)
    drop = torch.optim.lr_scheduler.MultiStepLR(adam, [turns * part // 8 for part in (3, 5, 7)], 0.1)
    lowest = seen.new_full((len(seen),), torch.inf)
    for _ in range(turns):
        rows = centre + apart @ back
        made = local_update(with_bias(rows), first.label, guess, start, training)
        alike = torch.nn.functional.cosine_similarity(made.flatten(1), seen.flatten(1))
        loss = 1 - alike + PRIOR * (apart**2).mean((1, 2))
        better = loss.detach() < lowest
        lowest = torch.where(better, loss.detach(), lowest)
        best = torch.where(better[:, None, None], rows.detach(), best)
        (gradient,) = torch.autograd.grad(loss.sum(), apart)
        apart.grad = gradient.sign()
        adam.step()
        drop.step()
    return best


def likeness(found: torch.Tensor, candidates: torch.Tensor, centre: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Largest cosine (T, m) of any of the rows found (T, F, D) with each candidate (T, m, D).

    Between what sets them apart from the mean row of their class, centre (T, D), in a metric (D, D) in which rows of a
    class are uncorrelated: in the raw one, what all rows share outweighs what makes each its own. Rows found that are
    not numbers count for nothing.
    """
    left, right = ((each - centre.unsqueeze(1)) @ metric for each in (found, candidates))
    cosine = torch.nn.functional.normalize(left, dim=-1) @ torch.nn.functional.normalize(right, dim=-1).mT
    return torch.nan_to_num(cosine, nan=-torch.inf).amax(1)
