"""The model that every peer retrains: one linear layer on digits-v1, by the plain loop that made the target.

Needs torch alone: it is imported in the peers' own environments too.
"""

from collections.abc import Iterable

import torch

FEATURES, CLASSES = 64, 10
EPOCHS, BATCH, LR = 30, 32, 0.03


class Linear(torch.nn.Module):
    """Logits (B, 10) of rows (B, 64); weights and bias start at zero."""

    def __init__(self, features: int = FEATURES, classes: int = CLASSES) -> None:
        super().__init__()
        self.features, self.classes = features, classes
        self.head = torch.nn.Linear(features, classes)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def train(
    model: torch.nn.Module, dataloader: Iterable[tuple[torch.Tensor, torch.Tensor]], epochs: int = EPOCHS
) -> torch.nn.Module:
    """Adam over batches that the loader shuffles anew each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(epochs):
        for x, y in dataloader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model
