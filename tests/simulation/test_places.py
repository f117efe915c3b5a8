"""Views equal selection by number, whatever the places."""

import pytest
import torch

from privacy_gate.simulation.places import Places

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("places", "axes"),
    [
        ([4], (1,)),
        ([2, 3, 4], (3,)),
        ([1, 4, 7, 10], (4,)),
        ([1, 2, 7, 8, 13, 14], (3, 2)),
        ([0, 2, 3], (3,)),
        ([0, 1, 5, 6, 11, 12], (6,)),
        ([0, 1, 5, 6, 10], (5,)),
    ],
    ids=str,
)
def test_places_select_and_set_like_indexing_by_number(places: list[int], axes: tuple[int, ...]) -> None:
    some = Places.from_numbers(places, CPU, nested=True)
    for values in (torch.randn(15, 4, 3), torch.randn(15, 7, 3)[:, 2:5], torch.randn(30, 2)[::2]):
        chosen = some.of(values)
        assert chosen.shape == (*axes, *values.shape[1:])
        assert torch.equal(chosen.reshape(len(places), *values.shape[1:]), values[places])
        expected = values.clone()
        expected[places] = -1
        some.put(values, torch.full_like(chosen, -1))
        assert torch.equal(values, expected)


def test_nested_runs_are_one_axis_unless_nested_is_set() -> None:
    assert Places.from_numbers([1, 2, 7, 8], CPU).of(torch.arange(9)).tolist() == [1, 2, 7, 8]
