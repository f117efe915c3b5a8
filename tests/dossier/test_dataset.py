"""Audit tables: every format gives the same data, and every fault gives one clear error."""

import hashlib
import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet

from privacy_gate.dossier.dataset import (
    AuditData,
    Columns,
    DataManifest,
    Split,
    describe_table,
    duplicates,
    hashed_ids,
    read_data,
)
from privacy_gate.dossier.tables.parquet import read_parquet
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


def as_parquet_struct_paths(folder: Path) -> Path:
    as_parquet_paths(folder)
    return write(folder, image=[{"bytes": None, "path": f"images/{row}.png"} for row in range(ROWS)])


def as_parquet_categories(folder: Path) -> Path:
    words = {"split": SPLIT, "sex": list("ffmmfm")}
    return write(folder, **{name: pa.array(values).dictionary_encode() for name, values in words.items()})


def as_npz_encoded(folder: Path) -> Path:
    columns = {name: np.array(value) for name, value in table().items()}
    np.savez_compressed(folder / "table.npz", **{**columns, "split": columns["split"].astype("S")})
    return folder / "table.npz"


def as_npz(folder: Path) -> Path:
    columns = {name: np.array(value) for name, value in table(image=None).items()}
    np.savez(folder / "table.npz", image=pixels(), **columns)
    return folder / "table.npz"


FORMS = [
    as_parquet_bytes,
    as_parquet_structs,
    as_parquet_struct_paths,
    as_parquet_paths,
    as_parquet_categories,
    as_csv,
    as_npz,
    as_npz_encoded,
]


@pytest.mark.parametrize("form", FORMS)
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


def test_canaries_and_traces_are_read_from_every_format_that_holds_them(tmp_path: Path) -> None:
    coin, losses = [True, False, True, False, False, False], np.arange(18.0).reshape(ROWS, 3)
    data = read(write(tmp_path, coin=coin, losses=losses.tolist()), canary="coin", trace="losses")
    assert data.canary is not None
    assert data.canary.tolist() == coin
    np.testing.assert_array_equal(data.trace, losses)
    arrays = {name: np.asarray(value) for name, value in table(image=None).items()}
    np.savez(tmp_path / "t.npz", **arrays, x=np.zeros((ROWS, 2), np.float32), coin=np.array(coin), losses=losses)
    other = read(tmp_path / "t.npz", image=None, embedding="x", canary="coin", trace="losses")
    np.testing.assert_array_equal(other.canary, data.canary)
    np.testing.assert_array_equal(other.trace, losses)
    plain = read(write(tmp_path))
    assert plain.canary is None
    assert plain.trace is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"canary": ["yes"] * ROWS}, "rows p0, p1, p2, p3, p4 and 1 more: canary is neither true nor false"),
        ({"canary": [False] * 4 + [True, False]}, "rows p4: population rows cannot be canaries"),
        ({"trace": [1.0] * ROWS}, "expected (N, E) of floats, one loss for every epoch; use Parquet or NPZ"),
        ({"trace": [[1.0, float("nan")]] + [[1.0, 2.0]] * 5}, "rows p0: trace holds values that are not finite"),
        ({"trace": [[1.0]] + [[1.0, 2.0]] * 5}, "rows of different lengths"),
    ],
)
def test_wrong_canaries_and_traces_are_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    (name,) = changes
    with pytest.raises(DatasetError, match=re.escape(expected)):
        read(write(tmp_path, **changes), **{name: name})


def test_hashed_ids_differ_by_table_and_tell_nothing_that_the_report_s_digest_could_undo(tmp_path: Path) -> None:
    data = read(write(tmp_path))
    names = hashed_ids(data)
    assert len(set(names)) == ROWS
    guessed = {hashlib.sha256(f"{data.digest}:{name}".encode()).hexdigest()[:16] for name in data.ids}
    assert not guessed & set(names)
    other = read(write(tmp_path, split=[*SPLIT[:2], "holdout", "member", *SPLIT[4:]]))
    assert not set(hashed_ids(other)) & set(names)


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
        ({"id": ["a", "a", "b", "c", "d", "e"]}, "rows a: ids occur more than once"),
        (
            {"id": ["a", None, "b", "c", "d", "e"]},
            "column 'id' has 1 empty cells, expected none; counted from 0, the first are in rows 1",
        ),
        ({"label": [0, 1, 3, 0, 1, -1]}, r"rows p2, p5: label outside 0 to 2; the recipe has 3 classes"),
        ({"label": [0.0, 1, 2, 0, 1, 2]}, "labels are of type float64"),
        ({"label": [True] * 6}, "labels are of type bool"),
        ({"label": ["0", "1", "2", "0", "1", "1.0"]}, "rows p5: label '1.0' is text; list class_names"),
        ({"id": [0.5, 1, 2, 3, 4, 5]}, "column 'id' is of type float64, expected text or whole numbers"),
        ({"sex": [0.5] * 6}, "column 'sex' is of type float64"),
        ({"sex": [["f"]] * 6}, "column 'sex' is of type"),
        ({"split": ["member", "held"] * 3}, "rows p1, p3, p5: split 'held' is unknown; known here: holdout, m"),
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
        ({"image": ["gone.png"] * 6}, "gone.png: no such file; correct the path in the table's column 'image'"),
    ],
)
def test_a_wrong_column_is_one_error_that_names_rows(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=expected) as caught:
        read(write(tmp_path, **changes), group="sex")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1.0, 2.0]] * 5 + [[1.0]], "rows of different lengths"),
        ([[1.0, float("nan")]] + [[1.0, 2.0]] * 5, "rows p0: embeddings that are not finite"),
        ([[1.0, 2.0]] * 5 + [[1.0, 1e300]], "rows p5: embeddings that are not finite as float32"),
        ([[1.0, None]] + [[1.0, 2.0]] * 5, "rows p0: embeddings that are not finite"),
        ([[1, 2]] * 6, "expected .N, D. of floats"),
        ([1.0] * 6, "expected .N, D. of floats"),
    ],
)
def test_wrong_embeddings_are_refused(values: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=expected):
        read(write(tmp_path, image=None, e=values), image=None, embedding="e")


def test_text_of_a_csv_stays_as_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"A")
    lines = ["id,label,split,image,sex", "007,0,member,a.png,NA", "7,1,holdout,a.png,nan"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = read(tmp_path / "table.csv", group="sex")
    assert data.ids.tolist() == ["007", "7"]
    assert data.label.tolist() == [0, 1]
    assert data.group is not None
    assert data.group.tolist() == ["NA", "nan"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["id,label,split,image", "a,,member,a.png"], "column 'label' has 1 empty cells"),
        (["id,label,split,image,label", "a,0,member,a.png,1"], "2 columns are called 'label'"),
        (["id,label,split,image", "a,0,member"], "not a sound csv file"),
    ],
)
def test_a_wrong_csv_is_refused(lines: list[str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=expected):
        read(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"label": np.arange(5) % 3}, "label .5,., .*expected the same number of rows in each"),
        ({"label": np.array(1)}, "label .., .*expected the same number of rows in each"),
        ({"image": np.zeros((ROWS, 8, 8), np.float32)}, "type float32, expected .N, H, W. or"),
        ({"image": np.zeros((ROWS, 8, 8, 2), np.uint8)}, "expected .N, H, W. or"),
    ],
)
def test_a_wrong_npz_is_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    columns = {name: np.array(value) for name, value in table(**{"image": pixels(), **changes}).items()}
    np.savez(tmp_path / "table.npz", **columns)
    with pytest.raises(DatasetError, match=expected):
        read(tmp_path / "table.npz")


def test_class_names_fit_the_recipe_and_stand_once(tmp_path: Path) -> None:
    path = write(tmp_path)
    manifest = describe_table(str(path), Columns(image="image"), class_names=("ant", "cat"))
    with pytest.raises(DatasetError, match="class_names has 2 names, but the recipe has classes: 3"):
        read_data(manifest, 3)
    with pytest.raises(ValueError, match="class_names has a name twice"):
        describe_table(str(path), Columns(image="image"), class_names=("ant", "cat", "ant"))


def test_importing_the_module_imports_no_heavy_library() -> None:
    heavy = "('pyarrow', 'fsspec', 'PIL', 'torch')"
    code = f"import sys, privacy_gate.dossier.dataset; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Counting(io.FileIO):
    """A file that counts the bytes read from it."""

    total = 0

    def read(self, size: int | None = -1) -> bytes:
        got = super().read(-1 if size is None else size)
        self.total += len(got)
        return got


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """16 MB of images in row groups of 400."""
    rng = np.random.default_rng(0)
    images = [row.to_bytes(4, "big") + rng.bytes(16_000) for row in range(1000)]
    parquet.write_table(pa.table({"id": range(1000), "image": images}), tmp_path / "large.parquet", row_group_size=400)
    return tmp_path / "large.parquet"


def test_labels_are_read_without_the_images(large: Path) -> None:
    with Counting(large) as file:
        raw = read_parquet("t", file, ["id"], "image")
        assert raw.columns["id"].tolist() == list(range(1000))
        assert file.total < large.stat().st_size / 20


@pytest.mark.parametrize("threads", [1, 8])
def test_images_read_in_order_are_read_once_whatever_the_threads(large: Path, threads: int) -> None:
    with Counting(large) as file, ThreadPoolExecutor(threads) as pool:
        image = read_parquet("t", file, ["id"], "image").image
        assert image is not None
        parts = pool.map(lambda first: [image(row)[:4] for row in range(first, first + 50)], range(0, 1000, 50))
        rows = [int.from_bytes(head, "big") for part in parts for head in part]
        assert rows == list(range(1000))
        assert file.total < large.stat().st_size * 1.1


def test_images_can_be_read_in_any_order_and_again(large: Path) -> None:
    with large.open("rb") as file:
        image = read_parquet("t", file, ["id"], "image").image
        assert image is not None
        for row in [999, 0, 0, 400, 399, 401, 31, 32, 0, *np.random.default_rng(1).integers(0, 1000, 20).tolist()]:
            assert int.from_bytes(image(row)[:4], "big") == row


def test_a_table_elsewhere_is_read_like_one_here(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    path = as_parquet_paths(tmp_path)
    for file in [path, *(tmp_path / "images").iterdir()]:
        files.pipe(f"/audit/{file.relative_to(tmp_path)}", file.read_bytes())
    manifest = describe_table("memory://audit/table.parquet", Columns(image="image"))
    data, here = read_data(manifest, 3), read(path)
    assert data.digest == here.digest
    np.testing.assert_array_equal(decoded(data, 4), pixels()[4])


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


def test_an_image_file_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    data = read(as_csv(tmp_path))
    assert data.image is not None
    (tmp_path / "images" / "3.png").write_bytes(b"other")
    data.image(2)
    with pytest.raises(DatasetError, match=r"3\.png: the file changed during the audit"):
        data.image(3)


def test_a_link_out_of_the_table_s_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    path = as_parquet_paths(folder)
    (folder / "images" / "3.png").rename(tmp_path / "secret.png")
    (folder / "images" / "3.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DatasetError, match=r"names 'images/3.png', expected a path inside the table's folder"):
        read(path)


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
        describe_table("gs://bucket/table.csv", Columns(image="image"))  # its package is not installed
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "uri", ["http://169.254.169.254/x.csv", "nosuch://a/t.csv", "zip://t.csv::s3://b/a.csv", "ssh://h/t.csv"]
)
def test_a_dossier_cannot_send_the_gate_to_foreign_places(uri: str) -> None:
    with pytest.raises(DatasetError, match="may not use this protocol"):
        describe_table(uri, Columns(image="image"))


def test_the_same_image_among_members_and_holdout_is_found(tmp_path: Path) -> None:
    images = [png(image) for image in pixels()]
    images[3] = images[0]
    images[5] = images[1]  # a duplicate in the population does no harm
    assert duplicates(read(write(tmp_path, image=images))) == [("p0", "p3")]
    assert duplicates(read(write(tmp_path))) == []


def test_equal_raw_pixels_and_equal_embeddings_are_found_too(tmp_path: Path) -> None:
    columns = {name: np.array(value) for name, value in table(image=None).items()}
    values = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
    grey = pixels()[..., 0]
    values[3], grey[3] = values[0], grey[0]
    np.savez(tmp_path / "t.npz", image=grey, e=values, **columns)
    assert duplicates(read(tmp_path / "t.npz")) == [("p0", "p3")]
    assert duplicates(read(tmp_path / "t.npz", image=None, embedding="e")) == [("p0", "p3")]


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ["x\n::error::forged"] * ROWS},
        {"split": ["x\n::error::forged"] * ROWS},
        {"label": ["x\n::error::forged"] * ROWS},
        {"id": ["x\r::error::forged", *"bcdef"], "label": [9] * ROWS},
    ],
    ids=["ids", "splits", "labels", "an id of a row at fault"],
)
def test_no_text_of_a_table_makes_a_line_of_its_own(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="forged") as caught:
        read(write(tmp_path, **changes))
    assert str(caught.value).splitlines() == [str(caught.value)]
