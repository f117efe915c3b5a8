"""Strict YAML: one clear error at file:line:col for everything that is not plain and exact."""

from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from privacy_gate.documents import Record, dump, load
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError

RECIPE = """\
backbone: {name: identity}
classes: 10
optimizer: {name: adam, lr: 1e-3}
epochs: 30
batch_size: 64
"""


class Note(Record):
    text: str
    number: float
    flag: bool = False


def complaint(text: str, kind: type[Record] = Recipe) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(text, kind, "file.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_recipe_survives_the_round_trip() -> None:
    recipe = load(RECIPE, Recipe, "recipe.yaml")
    assert load(dump(recipe), Recipe, "again.yaml") == recipe


def test_exponents_without_a_point_are_numbers_and_on_is_text() -> None:
    note = load("text: on\nnumber: 1e-3", Note, "note.yaml")
    assert (note.text, note.number) == ("on", 0.001)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RECIPE + "epoch: 3\n", "file.yaml:6:1: epoch: unknown key; did you mean 'epochs'?"),
        (RECIPE.replace("lr:", "lrr: 1, lr:"), "file.yaml:3:25: optimizer.lrr: unknown key; did you mean 'lr'?"),
        (RECIPE + "epochs: 4\n", "file.yaml:6:1: key 'epochs' is repeated (first on line 4)"),
        (RECIPE.replace("1e-3", "'1e-3'"), "file.yaml:3:29: optimizer.lr: Input should be a valid number"),
        (RECIPE.replace("1e-3", "true"), "file.yaml:3:29: optimizer.lr: Input should be a valid number"),
        (RECIPE.replace("1e-3", ".nan"), "file.yaml:3:29: '.nan' is not a finite number"),
        (RECIPE.replace("1e-3", "1e999"), "file.yaml:3:29: '1e999' is not a finite number"),
        (RECIPE.replace("1e-3", "-1"), "file.yaml:3:29: optimizer.lr: Input should be greater than 0 (found -1)"),
        (RECIPE.replace("epochs: 30\n", ""), "file.yaml:1:1: 'epochs' is missing here"),
        (RECIPE.replace("epochs: 30", "epochs: 3.5"), "file.yaml:4:9: epochs: Input should be a valid integer"),
        (RECIPE.replace("{name: identity}", "{name: resnet50}"), "file.yaml:1:11: backbone needs weights"),
        (RECIPE + "precision: bfloat16\n", "file.yaml:6:12: precision bfloat16 works only if a network"),
        (
            RECIPE.replace("name: adam", "name: adamm"),
            "file.yaml:3:19: optimizer.name: 'adamm' is unknown; did you mean 'adam'?",
        ),
        (RECIPE + "adaptation: heads\n", "file.yaml:6:13: adaptation: 'heads' is unknown; did you mean 'head'?"),
        (RECIPE + "input: {size: 64, mean: [0, 0], std: [1, 1, 1]}\n", "file.yaml:6:19: input.mean: entry 3 is"),
        ("a: &x 1\nb: *x\n", "file.yaml:1:4: anchors and aliases are not accepted"),
        ("a: !!python/object/apply:os.system [ls]\n", "file.yaml:1:4: tag"),
        ("a: {b: \n", "file.yaml:2:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "file.yaml:2:1: more than one document"),
        ("a: " + "[" * 5000, "nested deeper than"),
        ("", "file.yaml:1:1: the file is empty"),
        ("- 1", "file.yaml:1:1: Input should be an object"),
        ("? [a]\n: 1", "file.yaml:1:3: a key must be plain text"),
        ("a: \x00", "file.yaml:1:1: not valid YAML"),
        ("#" * 2_000_000, "file is larger than"),
    ],
)
def test_every_fault_is_placed_and_explained(text: str, expected: str) -> None:
    assert expected in complaint(text)


FORGED = "x\\n::stop-commands::t\\nAPPROVED: digits"


@pytest.mark.parametrize(
    "text",
    [
        RECIPE + f'"{FORGED}": 1\n',
        RECIPE + f'"{FORGED}": 1\n"{FORGED}": 1\n',
        RECIPE.replace("name: adam", f'name: "{FORGED}"'),
        RECIPE + f'adaptation: "{FORGED}"\n',
        RECIPE.replace("epochs: 30", f'epochs: "{FORGED}"'),
        RECIPE.replace("lr: 1e-3", f'"{FORGED}": 1, lr: 1e-3'),
    ],
)
def test_no_text_of_a_document_makes_a_line_of_its_own(text: str) -> None:
    assert "stop-commands" in complaint(text)
    assert all(line.startswith("file.yaml:") for line in complaint(text).splitlines())


def test_all_faults_are_reported_at_once() -> None:
    message = complaint(RECIPE.replace("epochs: 30", "epochs: 0") + "sed: 1\n")
    assert message.splitlines() == [
        "file.yaml:4:9: epochs: Input should be greater than or equal to 1 (found 0)",
        "file.yaml:6:1: sed: unknown key; did you mean 'seed'?",
    ]


class Notes(Record):
    notes: Annotated[tuple[Note, ...], Field(min_length=2)]


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ("[{text: a, number: 1}, {text: b, number: x}]", ["file.yaml:1:49: notes.1.number: Input should be a valid"]),
        ("[{text: b, number: x}]", ["file.yaml:1:27: notes.0.number", "file.yaml:1:8: notes: Tuple should have at"]),
        ("[{text: a, number: 1}]", ["file.yaml:1:8: notes: Tuple should have at least 2 items"]),
    ],
)
def test_a_list_is_too_short_by_what_stands_in_it_and_not_by_what_is_sound(notes: str, expected: list[str]) -> None:
    found = complaint(f"notes: {notes}", Notes).splitlines()
    assert [line.startswith(start) for line, start in zip(found, expected, strict=True)] == [True] * len(expected)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#%@,? \n\t0.1e~é\x07\u2028"), max_size=60))
def test_no_text_makes_the_reader_fail_otherwise(text: str) -> None:
    try:
        load(text, Note, "fuzz.yaml")
    except ConfigurationError as error:
        message = str(error)
    else:
        return
    assert all(line.startswith("fuzz.yaml:") for line in message.split("\n"))
