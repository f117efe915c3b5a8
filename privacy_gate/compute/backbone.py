"""The frozen public backbone: built by timm, filled from pinned bytes, run over the audit images."""

import hashlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from privacy_gate.candidate import Backbone, Input, Recipe
from privacy_gate.compute.heads import TrainedHead
from privacy_gate.compute.machine import Machine
from privacy_gate.compute.vision import OPERATORS as _OPERATORS  # noqa: F401 - must come before timm
from privacy_gate.dataset import AuditData
from privacy_gate.documents import nearest
from privacy_gate.errors import CandidateError, DatasetError, UndecidedError
from privacy_gate.job import Embed
from privacy_gate.progress import Progress, silent
from privacy_gate.tables import read_bytes
from privacy_gate.weights import match_strict, read_weights, read_weights_file

import timm  # isort: skip
from timm.data.transforms_factory import create_transform  # isort: skip

PREFETCH = 4
"""Batches decoded ahead of the device."""

SHOWN = 20
"""Ids of unreadable images named in the error; the rest are counted."""

Tensors = dict[str, torch.Tensor]


class Decoded(NamedTuple):
    """One image, ready for the backbone, with the sha256 of its encoded bytes; pixels None if unreadable."""

    pixels: torch.Tensor | None
    content: NDArray[np.uint8]


def build(backbone: Backbone, classes: int) -> torch.nn.Module:
    """The architecture, untrained, in eval mode; classes 0: without its head.

    Raises CandidateError for a name timm does not know.
    """
    if not timm.is_model(backbone.name):
        raise CandidateError(f"recipe: timm knows no model '{backbone.name}'; {_near(backbone.name)}")
    model: torch.nn.Module = timm.create_model(backbone.name, pretrained=False, num_classes=classes)
    return model.eval()


def _near(name: str) -> str:
    return nearest(name, timm.list_models()).partition("known here:")[0] or "list them with timm.list_models()"


def public_tensors(backbone: Backbone) -> Tensors:
    """The backbone's public weights, from the bytes that the recipe pins, without its head.

    Raises CandidateError where the bytes are others, or are no weights of this architecture.
    """
    if backbone.weights is None:
        raise CandidateError("recipe: backbone 'identity' has no public weights")
    payload = read_bytes(backbone.weights.uri)
    found = hashlib.sha256(payload).hexdigest()
    if found != backbone.weights.sha256:
        raise CandidateError(
            f"{backbone.weights.uri}: sha256 is {found}, the recipe says {backbone.weights.sha256}: "
            "name the weights that the candidate was fine-tuned from"
        )
    with TemporaryDirectory(prefix="privacy-gate-") as folder:
        path = Path(folder) / Path(backbone.weights.uri).name
        path.write_bytes(payload)
        tensors = read_weights_file(path)
    body = build(backbone, 0).state_dict()
    # A head for the classes of the public training set may stand beside the body.
    return match_strict({name: tensors[name] for name in tensors if name in body}, body, backbone.weights.uri)


def public_body(backbone: Backbone) -> torch.nn.Module:
    """The backbone with its public weights and no head: images in, features (B, D) out."""
    model = build(backbone, 0)
    model.load_state_dict(public_tensors(backbone))
    return model


def head_names(model: torch.nn.Module) -> tuple[str, str]:
    """What the model's state dict calls the weight and bias of its last linear layer."""
    find: Any = model.get_classifier
    last = find()
    for name, module in model.named_modules():
        if module is last and isinstance(module, torch.nn.Linear):
            return f"{name}.weight", f"{name}.bias"
    raise CandidateError("recipe: this architecture has no linear head; adaptation 'head' does not fit it")


def candidate_head(folder: Path, recipe: Recipe) -> TrainedHead:
    """The candidate's head, index -1, from the artifact in `folder`.

    Every other tensor must be the public backbone's, bit for bit: that is what adaptation `head` says,
    and what makes cached features the candidate's own. Raises CandidateError for malformed weights,
    UndecidedError for a body that is not the public one.
    """
    tensors = read_weights(folder)
    if recipe.backbone.is_identity:
        return _lone_head(tensors, recipe.classes)
    model = build(recipe.backbone, recipe.classes)
    matched = match_strict(tensors, model.state_dict(), "the candidate")
    weight, bias = head_names(model)
    public = public_tensors(recipe.backbone)
    changed = [name for name in public if not name.endswith("num_batches_tracked")
               and not torch.equal(public[name], matched[name])]  # fmt: skip
    if changed:
        statistics = all("running_" in name for name in changed)
        cause = (
            "only BatchNorm statistics drifted: keep the frozen backbone in eval mode while training the head"
            if statistics
            else "more than the head was trained, or other public weights were used: correct the recipe"
        )
        raise UndecidedError(
            f"the dossier does not describe this model: the recipe says adaptation 'head', but {len(changed)} of "
            f"{len(public)} backbone tensors differ from the public weights, the first {changed[0]}; {cause}"
        )
    return TrainedHead(-1, matched[weight].float(), matched[bias].float())


def _lone_head(tensors: Tensors, classes: int) -> TrainedHead:
    """The head of a candidate on the identity backbone: one matrix (C, D) and its bias (C,)."""
    matrices = [tensor for tensor in tensors.values() if tensor.ndim == 2]
    vectors = [tensor for tensor in tensors.values() if tensor.ndim == 1]
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:5])
    if len(matrices) != 1 or len(vectors) > 1 or len(tensors) != len(matrices) + len(vectors):
        raise CandidateError(f"the candidate holds {shapes}; expected one linear layer: a weight and a bias")
    weight = matrices[0].float()
    bias = vectors[0].float() if vectors else torch.zeros(len(weight))
    if len(weight) != classes or bias.shape != (classes,):
        raise CandidateError(f"the candidate holds {shapes}; expected {classes} classes, as the recipe says")
    return TrainedHead(-1, weight, bias)


def assemble(recipe: Recipe, weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Module:
    """The whole model: the public backbone with this head (C, D), (C,)."""
    model = build(recipe.backbone, recipe.classes)
    names = head_names(model)
    model.load_state_dict({**public_tensors(recipe.backbone), names[0]: weight, names[1]: bias})
    return model


def embed(
    jobs: Sequence[Embed], data: AuditData, machine: Machine, progress: Progress = silent
) -> Iterator[tuple[Embed, NDArray[np.float32], NDArray[np.uint8]]]:
    """Features (rows, D) and content sha256 (rows, 32) of each job, as soon as it is done.

    Images are decoded by `machine.workers` threads ahead of the device (decoding and resizing leave the
    interpreter's lock). An unreadable image spoils its job alone; all of them are named, by id, in one
    DatasetError at the end.
    """
    if not jobs:
        return
    device = machine.torch_device()
    model: Any = public_body(jobs[0].backbone)
    model = model.to(device, memory_format=torch.channels_last)
    transform = _transform(jobs[0].input)
    unreadable: list[int] = []
    done, total = 0, sum(job.last - job.first for job in jobs)
    with ThreadPoolExecutor(max(1, machine.workers)) as threads:
        for job, batches in _ahead(jobs, data, transform, machine, threads):
            features, content = [], []
            for first, batch in batches:
                rows = [future.result() for future in batch]
                unreadable += [first + place for place, row in enumerate(rows) if row.pixels is None]
                content += [row.content for row in rows]
                pixels = [row.pixels for row in rows if row.pixels is not None]
                if len(pixels) == len(rows):
                    features.append(_forward(model, torch.stack(pixels), device))
                done += len(rows)
                progress("embed images", done, total)
            if len(content) == sum(len(part) for part in features):
                yield job, np.concatenate(features), np.stack(content)
    if unreadable:
        named = ", ".join(str(data.ids[row]) for row in unreadable[:SHOWN])
        more = f" and {len(unreadable) - SHOWN:,} more" if len(unreadable) > SHOWN else ""
        raise DatasetError(f"{len(unreadable):,} images cannot be read: {named}{more}; repair or remove these rows")


def embed_all(recipe: Recipe, data: AuditData, machine: Machine, progress: Progress = silent) -> NDArray[np.float32]:
    """Features of every row, (N, D), kept nowhere."""
    if recipe.input is None:
        raise DatasetError("the identity backbone has no images to embed")
    job = Embed(recipe.backbone, recipe.input, data.digest, 0, data.rows)
    return np.concatenate([features for _, features, _ in embed([job], data, machine, progress)])


Batches = Iterator[tuple[int, list[Future[Decoded]]]]


def _ahead(
    jobs: Sequence[Embed], data: AuditData, transform: Any, machine: Machine, threads: ThreadPoolExecutor
) -> Iterator[tuple[Embed, Batches]]:
    """Each job with its batches, decoded PREFETCH batches ahead, across the jobs' borders."""
    starts = deque(
        (first, min(first + machine.batch, job.last))
        for job in jobs
        for first in range(job.first, job.last, machine.batch)
    )
    waiting: deque[tuple[int, list[Future[Decoded]]]] = deque()

    def more() -> None:
        while starts and len(waiting) <= PREFETCH:
            first, last = starts.popleft()
            waiting.append((first, [threads.submit(_decode, data, row, transform) for row in range(first, last)]))

    def batches(job: Embed) -> Batches:
        for _ in range(job.first, job.last, machine.batch):
            more()
            yield waiting.popleft()

    for job in jobs:
        yield job, batches(job)


def _forward(model: torch.nn.Module, pixels: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
    with torch.inference_mode():
        features = model(pixels.to(device, memory_format=torch.channels_last))
    if features.ndim != 2:
        raise CandidateError(f"recipe: the backbone gives features of shape {tuple(features.shape)}, expected (B, D)")
    return np.asarray(features.float().cpu().numpy())


def _transform(shape: Input) -> Any:
    """timm's own evaluation transform."""
    return create_transform(
        input_size=(3, shape.size, shape.size),
        is_training=False,
        interpolation=shape.interpolation,
        mean=shape.mean,
        std=shape.std,
        crop_pct=shape.crop,
    )


def _decode(data: AuditData, row: int, transform: Any) -> Decoded:
    """The row's image as the backbone wants it. EXIF orientation is not applied, as in torchvision."""
    if data.image is None:
        raise DatasetError("the table holds embeddings; the recipe names an image backbone")
    payload = data.image(row)
    content = np.frombuffer(hashlib.sha256(payload).digest(), np.uint8)
    try:
        with Image.open(io.BytesIO(payload)) as image:
            return Decoded(transform(_rgb(image)), content)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return Decoded(None, content)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; 16-bit greys are scaled to 8 bits, which PIL's own conversion would clip."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64) // 257
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
