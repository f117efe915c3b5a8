"""The loss trace's spread: its closed form, and what it needs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy_gate.attacks import ATTACKS
from privacy_gate.attacks.evidence import MembershipEvidence
from privacy_gate.attacks.loss import loss_trace
from privacy_gate.errors import EvidenceError


def test_it_is_the_interquartile_range_over_the_epochs(plant: Callable[..., MembershipEvidence]) -> None:
    evidence = plant(0)
    trace = np.tile([4.0, 3.0, 2.0, 1.0, 0.0], (len(evidence.label), 1))
    trace[1] = [1.0, 1.0, 1.0, 1.0, 9.0]
    assert loss_trace(replace(evidence, trace=trace))[:3].tolist() == [2.0, 0.0, 2.0]


def test_without_a_trace_it_is_not_measured(plant: Callable[..., MembershipEvidence]) -> None:
    bare = replace(plant(0), trace=None)
    assert "needs the losses of every epoch" in str(ATTACKS["loss_trace"].unmet(bare))
    with pytest.raises(EvidenceError, match="trace"):
        loss_trace(bare)
