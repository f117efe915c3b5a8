"""A small model with every kind of tensor in a state dict, and builders of hostile files."""

import importlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


class Net(torch.nn.Module):
    """A model with a convolution, batch norm, a tied tensor and a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.head = torch.nn.Linear(4, 2, dtype=torch.bfloat16)
        self.tied = self.body[0].weight
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)).bfloat16()).float() + self.tied.sum()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="session")
def exported() -> bytes:
    """The same model in a file from torch.export.save."""
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),)), file)
    return file.getvalue()


@pytest.fixture
def pt2(exported: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    path.write_bytes(exported)
    return path


Same = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], bool]


@pytest.fixture(scope="session")
def same() -> Same:
    """Whether names, types, shapes and bits are equal."""

    def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
        return found.keys() == expected.keys() and all(
            found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
        )

    return compare


class Hostile:
    """Its pickle is a call that creates a marker file if it is executed."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The marker file, which exists if a hostile object was executed."""
    return tmp_path / "mark"


@pytest.fixture
def payloads(mark: Path) -> list[Hostile]:
    return [
        Hostile(os.system, f"touch {mark}"),
        Hostile(eval, f"open({str(mark)!r}, 'w')"),
        Hostile(exec, f"open({str(mark)!r}, 'w')"),
        Hostile(open, str(mark), "w"),
        Hostile(__import__, "antigravity"),
        Hostile(importlib.import_module, "antigravity"),
    ]


Rewrite = Callable[..., None]


@pytest.fixture(scope="session")
def rewrite() -> Rewrite:
    """Writes the same archive with changed records; None removes a record."""

    def change(path: Path, changes: dict[str, bytes | None], *, compressed: bool = False) -> None:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
        records.update({name: content for name, content in changes.items() if content is not None})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
            for name, content in records.items():
                if changes.get(name, b"") is not None:
                    archive.writestr(name, content)

    return change
