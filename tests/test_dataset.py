"""Audit tables: the same data however they are written, and one clear error for every way to be wrong."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet

from privacy_gate.dataset import (
    AuditData,
    Columns,
    DataManifest,
    Split,
    describe_table,
    duplicates,
    hashed_ids,
    read_data,
)
from privacy_gate.errors import CandidateError, ConfigurationError, DatasetError, UnavailableError

ROWS = 6
SPLIT = ["member", "member", "holdout", "holdout", "population", "population"]


def pixels() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:  # type: ignore[type-arg]
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def table(**changes: Any) -> dict[str, Any]:
    plain = {
        "id": [f"p{row}" for row in range(ROWS)],
        "label": [0, 1, 2, 0, 1, 2],
        "split": SPLIT,
        "image": [png(image) for image in pixels()],
        "sex": list("ffmmfm"),
    }
    return {name: value for name, value in {**plain, **changes}.items() if value is not None}


def write(folder: Path, **changes: Any) -> Path:
    parquet.write_table(pa.table(table(**changes)), folder / "table.parquet")
    return folder / "table.parquet"


def read(path: Path, **columns: Any) -> AuditData:
    settings = {"image": "image", **columns}
    return read_data(describe_table(str(path), Columns(**settings)), classes=3)


def decoded(data: AuditData, row: int) -> np.ndarray:  # type: ignore[type-arg]
    assert data.image is not None
    return np.asarray(Image.open(io.BytesIO(data.image(row))).convert("RGB"))


def as_parquet_bytes(folder: Path) -> Path:
    return write(folder)


def as_parquet_structs(folder: Path) -> Path:
    return write(folder, image=[{"bytes": png(image), "path": None} for image in pixels()])


def as_parquet_paths(folder: Path) -> Path:
    (folder / "images").mkdir()
    paths = [f"images/{row}.png" for row in range(ROWS)]
    for path, image in zip(paths, pixels(), strict=True):
        (folder / path).write_bytes(png(image))
    return write(folder, image=paths)


def as_csv(folder: Path) -> Path:
    as_parquet_paths(folder)
    csv.write_csv(parquet.read_table(folder / "table.parquet"), folder / "table.csv")
    return folder / "table.csv"


def as_npz(folder: Path) -> Path:
    columns = {name: np.array(value) for name, value in table(image=None).items()}
    np.savez(folder / "table.npz", image=pixels(), **columns)
    return folder / "table.npz"


@pytest.mark.parametrize("form", [as_parquet_bytes, as_parquet_structs, as_parquet_paths, as_csv, as_npz])
def test_every_format_holds_the_same_data(form: Any, tmp_path: Path) -> None:
    data = read(form(tmp_path), group="sex")
    assert data.ids.tolist() == [f"p{row}" for row in range(ROWS)]
    assert data.label.tolist() == [0, 1, 2, 0, 1, 2]
    assert [Split(code).name.lower() for code in data.split] == SPLIT
    assert data.group is not None
    assert data.group.tolist() == list("ffmmfm")
    for row in range(ROWS):
        np.testing.assert_array_equal(decoded(data, row), pixels()[row])


@pytest.mark.parametrize("form", ["fixed", "list", "npz"])
def test_embeddings_are_read_as_float32_rows(form: str, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(ROWS, 4)).astype(np.float32)
    if form == "npz":
        columns = {name: np.array(value) for name, value in table(image=None).items()}
        np.savez(tmp_path / "table.npz", e=values, **columns)
        path = tmp_path / "table.npz"
    else:
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4)
        path = write(tmp_path, image=None, e=fixed if form == "fixed" else values.tolist())
    data = read(path, image=None, embedding="e")
    assert data.embedding is not None
    np.testing.assert_array_equal(data.embedding, values)
    assert data.image is None


def test_class_names_give_text_labels_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, label=["cat", "dog", "ant", "cat", "dog", "ant"])
    manifest = describe_table(str(path), Columns(image="image"), class_names=("ant", "cat", "dog"))
    assert read_data(manifest, 3).label.tolist() == [1, 2, 0, 1, 2, 0]
    with pytest.raises(DatasetError, match="list class_names in the manifest"):
        read(path)
    with pytest.raises(DatasetError, match=r"label 'dog' is not in class_names; did you mean 'dogs'"):
        read_data(manifest.model_copy(update={"class_names": ("ant", "cat", "dogs")}), 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": ["a", "a", "b", "c", "d", "e"]}, "rows a: ids stand more than once"),
        ({"id": ["a", None, "b", "c", "d", "e"]}, "column 'id' has 1 empty cells"),
        ({"label": [0, 1, 3, 0, 1, -1]}, r"rows p2, p5: label outside 0 to 2; the recipe has 3 classes"),
        ({"label": [0.0, 1, 2, 0, 1, 2]}, "labels are of type float64"),
        ({"label": [True] * 6}, "labels are of type bool"),
        ({"split": ["member", "held"] * 3}, "split 'held' is unknown; known here: holdout, member, population"),
        ({"split": ["members"] * 6}, "split 'members' is unknown; did you mean 'member'"),
        ({"split": ["member"] * 6}, "no holdout rows"),
        ({"split": ["holdout"] * 6}, "no member rows"),
        ({"label": None}, "no column 'label'"),
        ({"image": None, "img": [b""] * 6}, "no column 'image'; did you mean 'img'"),
        ({"image": [1] * 6}, "column 'image' holds int64, expected image bytes"),
        ({"image": [b"", None] * 3}, "column 'image' has 3 empty cells"),
        ({"image": ["../secret.png"] * 6}, "expected a path inside the table's folder"),
        ({"image": ["/etc/passwd"] * 6}, "expected a path inside the table's folder"),
        ({"image": ["http://evil/x.png"] * 6}, "expected a path inside the table's folder"),
        ({"image": ["gone.png"] * 6}, "gone.png: no such file"),
    ],
)
def test_a_wrong_column_is_one_error_that_names_rows(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=expected) as caught:
        read(write(tmp_path, **changes))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1.0, 2.0]] * 5 + [[1.0]], "rows of different lengths"),
        ([[1.0, float("nan")]] + [[1.0, 2.0]] * 5, "rows p0: embeddings that are not finite"),
        ([[1, 2]] * 6, "expected .N, D. of floats"),
        ([1.0] * 6, "expected .N, D. of floats"),
    ],
)
def test_wrong_embeddings_are_refused(values: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=expected):
        read(write(tmp_path, image=None, e=values), image=None, embedding="e")


def manifest_of(path: Path) -> DataManifest:
    return describe_table(str(path), Columns(image="image"))


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    manifest = manifest_of(write(tmp_path))
    write(tmp_path, label=[1, 1, 2, 0, 1, 2])
    with pytest.raises(DatasetError, match="the table changed since the dossier was written"):
        read_data(manifest, 3)


def test_a_changed_image_file_is_noticed(tmp_path: Path) -> None:
    manifest = manifest_of(as_parquet_paths(tmp_path))
    (tmp_path / "images" / "3.png").write_bytes(b"other")
    with pytest.raises(DatasetError, match="some changed since the dossier was written"):
        read_data(manifest, 3)


def test_a_manifest_without_the_files_digest_is_refused(tmp_path: Path) -> None:
    manifest = manifest_of(as_parquet_paths(tmp_path))
    bare = manifest.model_copy(update={"table": manifest.table.model_copy(update={"files_sha256": None})})
    with pytest.raises(DatasetError, match="needs files_sha256"):
        read_data(bare, 3)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
@pytest.mark.parametrize("content", [b"", b"nonsense\x00\xff"])
def test_what_is_no_table_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    path.write_bytes(content)
    with pytest.raises(CandidateError):
        describe_table(str(path), Columns(image="image"))


def test_a_pickled_npz_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "table.npz",
        e=np.zeros((2, 2)),
        id=np.array([{"evil": 1}] * 2, dtype=object),
        label=[0, 1],
        split=["a", "b"],
    )
    with pytest.raises(DatasetError, match="not a sound NPZ file"):
        describe_table(str(tmp_path / "table.npz"), Columns(embedding="e", id="id"))


def test_where_the_table_lies_changes_nothing(tmp_path: Path) -> None:
    first = read(write(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    second = read(write(tmp_path / "elsewhere"))
    assert first.digest == second.digest
    assert hashed_ids(first) == hashed_ids(second)
    assert not set(hashed_ids(first)) & set(first.ids.tolist())


def test_an_unknown_ending_and_an_unknown_place_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected .parquet, .csv or .npz"):
        describe_table(str(tmp_path / "table.xlsx"), Columns(image="image"))
    with pytest.raises(DatasetError, match="no such file"):
        describe_table(str(tmp_path / "table.csv"), Columns(image="image"))
    with pytest.raises(UnavailableError) as caught:
        describe_table("nosuch://bucket/table.csv", Columns(image="image"))
    assert caught.value.exit_code == 6


def test_the_same_image_among_members_and_holdout_is_found(tmp_path: Path) -> None:
    images = [png(image) for image in pixels()]
    images[3] = images[0]
    images[5] = images[1]  # population: no harm
    assert duplicates(read(write(tmp_path, image=images))) == [("p0", "p3")]
    assert duplicates(read(write(tmp_path))) == []
