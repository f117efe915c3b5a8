"""The names under which results are stored never change by themselves: results computed years ago are found."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from privacy_gate.documents import InDigest, Record, parse
from privacy_gate.dossier.recipe import CommandRecipe, Recipe
from privacy_gate.jobs.digests import current, describe, digest, digest_of
from privacy_gate.jobs.kinds import Job, TrainReference
from tests.jobs.samples import ARTIFACT, DATASET, RECIPES, jobs, recipe

DIGESTS = {
    "reference, head": "ee4d74f07c5ee65ab4c0cdc424f63f1799628c34a8606b8a7718b8024a35660c",
    "reference, image head": "93bb7a7a1b13f42eba17c2d997ae4d79b60e222925afc5e31100b4467bfe0632",
    "reference, full": "c5e78dac1d03f5b81dfca995e4e19dc782848f7b05c269736080e7fafa689507",
    "reference, bfloat16": "4f5887f88c25dd6bb1b63c26982b1a6d2ef17976fadf3d354df5e3a0a3aecd36",
    "reference, lora": "a2923f8ffe818d7f57fc8152c253eb559474ac708bc142ba6574fd34a4037a2a",
    "reference, scratch": "5438218a0f2e21247fcda302dba47953f9b23b71ee27b8816660323a1e333b45",
    "reference, adamw": "8b40717321856ca0b3ca563fe015def3c264555633e961350987fb0cb0dbd747",
    "reference, steps": "995341d6877ecb05e27888a38e4dafb146d9a6a7520749e1b51af7d972be193f",
    "reference, dp-sgd": "116a229763e0537d4f06a83e005ec112023670637a3aab8b0fcc9e68e6bc802a",
    "reference, federated": "5406119320c2fee8f00dc0b40d7da6140ee673251a79326469f16b2d969dfa6c",
    "reference, federated by iid": "2a87c3108fa3bb8b4665b2d609b6dc0e300bcd7a259644ba99d2af6a9f24ce9f",
    "reference, private clients": "6efcdcbd0c5aa9cffc9463632784c08d5e7956ffe6aeb47b8de45e34508ffff8",
    "reference, clients' own noise": "4ce41e41557627d9a6c8ca32aded0cc552ab5412151bfd581372a68e3a2e0565",
    "reference, secure sums": "420fff328903ef2814d7237117d494ede6588d7ce9c6479cf17329d796379b4e",
    "reference, iterations": "a8810a26fc85c60c84799099c57a31dee7c890247c3140737dee4798b25732b1",
    "reference, krum": "a21b777db130185cb5ac19836a423ad459933f6ba67f42c6e80d4db1691615e3",
    "reference, buckets": "f849ff8f7b24a80e4f19b24edaf9cc0de76a6bc311d80252bc24aea562732376",
    "reference, server adam": "6f9f5369d5c24014c81f9ce5237b966343a2cb79e59d4a37c3acbee0d2d17137",
    "reference, server yogi": "3231cdfdf24c67f5f2676765e747359cfadcfed10e3958eea025a1098cf4534a",
    "reference, dirichlet": "aeeb87bd7beabc0a7d9eef0afa9d4006499c7253737c1c983179fd650437cb12",
    "reference, shards": "39a79cd129288836ac9ec80141e56dab21d17c334fc20427d7ce32053acc5189",
    "reference, federated network": "60251dd6a410b61afbf6c42356772bc44628c59a0d28167335308224003c03ce",
    "reference, program": "a9beda598a2300760365ec5a464370df620e6e9365ff3de81a35ee6a3c48a50b",
    "reference, patient program": "a7d4dc087639b74af2a44f987121ff70f3c75ecbd0fc2cacf34efe143ed1cdf4",
    "reference, divided": "0b85e545375df6a6e885bae77b893dec34ab5cffe13271748b638b080414f223",
    "embed": "3cc9c0ff83c88d932c7e9b05ad26262cff1f13c4fe6c6e5af0c5c8d9e2e10700",
    "embed, mirrored": "0e41bf059ea0a533744fc9f7250f29675cb9e07ac5d19242bd3de183b1bb5fc5",
    "embed, trigger": "83d5664f1f18f8bcd2ef06882e7ab7719bd9a962c24564f526639f4920dc2a22",
    "embed, no weights": "4f6648700c92402418a82564c81c42e6350e4e794d3f6b76655ed1ae88e16a07",
    "score": "75857020f17a0b1f26f9ad3b403cc5931b9fccc9f0afb1ff1fd35933810359a1",
    "score, program": "2c1b767b5377b21da82542d86cce2ab7d9700f4e946bab3509e9b562f3f1d5b4",
    "control": "f8ab49828366ec889a3c532dcf3c7cd06fa6b51dddaf11b9745459c0a3690581",
    "control, identity": "efd7488a86877c0248f1a56dc70d238661fca503c330cddec29c0c70fcee8a74",
    "federate": "ad463b600b651a7b43a3ee99ac8aa24b632b73914c288e802cd1074d2d12e55a",
    "federate, attacked": "36759004fe57f441016d18d62d489bf1d44f79739d1db93efad1eeb2e82091a4",
    "federate, stale": "d305bdb4ed3b476b63e2d101f13472dca91d3e5ab81d0180b25e887fbc37abd7",
    "federate, server adam": "948981440e1eb58d0f348ed158ca5b1a1bc8f983f9ae2b31ffb1e34e13aedfb8",
    "federate, screening": "b191d66d867528842609ff124afc420b4d6e9e53eb27b86ba662daffcdba7753",
    "confirm": "26c408b9abfdc0f3324da52a1d92027feccea60f96cb608131e99bc64589dd80",
    "probe": "500a3ae2183775d4cbf2536ba7c6ce005da5944ff189eee6985ede6b4c3e5e34",
    "trigger": "7196ed43ff70d2d045edeeef56e33019dcd94129952d6acdfe5c92d72133c3c2",
    "invert": "f7f64df755d51b1ceb6da42a2fef05ccfb48f221f51890ba5c3245f72bc15516",
    "invert trigger": "f7ef69fe63d0a5a178cae0b9040955f04f90ec842bc58ccfd8490304432d3da7",
    "evade": "1cee09f5d94b34aad35987d7ddf48c1ebb135fd867f6f2ddc2a6ccb0ed3a3f41",
    "universal": "014cdc3ffa1de2df445637b95758f43bdf5678881301f05987557c91eb614ac8",
    "corrupt": "f6b296f7a05485a3a0fa7a075be6a12247efe576e69374e0d86179e2cffe9500",
    "trajectory": "36c4e23576228318720307c70cf5f29dfc067af13bc52585af17cce83454c5a4",
}
"""Digests as first released. A change here throws every stored result of that kind away: raise its revision instead,
where the meaning of its results has changed."""


@pytest.mark.parametrize("name", DIGESTS)
def test_results_stored_by_earlier_versions_are_found(name: str) -> None:
    assert digest(jobs()[name]) == DIGESTS[name]


def test_the_sample_has_every_kind_of_job_and_no_two_share_a_digest() -> None:
    assert set(jobs()) == set(DIGESTS)
    assert {type(job) for job in jobs().values()} == set(Job.__subclasses__())
    assert len(set(DIGESTS.values())) == len(DIGESTS)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_description_read_back_from_a_file_has_the_digest_of_its_job_and_is_current(name: str) -> None:
    job = jobs()[name]
    described = json.loads(json.dumps(describe(job)))
    assert digest_of(described) == digest(job)
    assert current(described)
    assert not current(described | {"format": 1})
    assert not current(described | {"revision": job.revision + 1})


def test_kinds_that_this_version_does_not_know_are_current_if_their_format_is() -> None:
    assert current({"format": 2, "kind": "Foretell", "revision": 3})
    assert not current({"format": 1, "kind": "Foretell"})


def records(value: Any) -> Iterator[Record]:
    """The record and all records in it."""
    if isinstance(value, Record):
        yield value
        for name in type(value).model_fields:
            yield from records(getattr(value, name))
    if isinstance(value, tuple):
        for one in value:
            yield from records(one)


def defaults(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a field has its default, in the record and all records in it."""
    if isinstance(value, Record):
        for name, field in type(value).model_fields.items():
            inner = getattr(value, name)
            if not field.is_required() and inner == field.default:
                yield (*path, name)
            yield from defaults(inner, (*path, name))
    if isinstance(value, tuple):
        for place, one in enumerate(value):
            yield from defaults(one, (*path, place))


@pytest.mark.parametrize("name", RECIPES)
def test_a_default_gives_the_same_digest_written_out_or_left_out(name: str) -> None:
    how, kind = recipe(name), CommandRecipe if "trainer" in RECIPES[name] else Recipe
    everything = how.model_dump(mode="json")
    assert digest(TrainReference(parse(everything, kind, name), DATASET, 0)) == digest(TrainReference(how, DATASET, 0))
    for *way, last in defaults(how):
        if (*way, last) == ("schedule", "name"):
            continue  # says which schedule it is: where one is written, so is its name
        shorter = holder = deepcopy(everything)
        for step in way:
            holder = holder[step]
        del holder[last]
        same = kind.model_validate_json(json.dumps(shorter))
        assert digest(TrainReference(same, DATASET, 0)) == digest(TrainReference(how, DATASET, 0)), (*way, last)


def test_every_record_s_fields_are_described_but_those_that_say_otherwise() -> None:
    """Fields that are never part of digests are nowhere; those added later where they differ from their default."""
    left_out: set[str] = set()
    for job in jobs().values():
        for place, record in ((place, one) for place, value in vars(job).items() for one in records(value)):
            described = json.dumps(describe(job)[place])
            for name, field in type(record).model_fields.items():
                part = next((one for one in field.metadata if isinstance(one, InDigest)), InDigest.ALWAYS)
                if part is InDigest.ALWAYS:
                    assert f'"{name}": ' in described, (job, name)
                else:
                    left_out.add(f"{type(record).__name__}.{name}")
    assert left_out == {
        "Aggregator.iterations",
        "ClientPrivacy.noise_by",
        "CommandRecipe.precision",
        "CommandRecipe.table",
        "Federation.privacy",
        "PublicWeights.licence",
        "PublicWeights.uri",
        "Recipe.precision",
        "ServerOptimizer.tau",
        "Trainer.timeout_s",
        "View.trigger",
    }


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"backbone": {"name": "resnet18", "weights": {"uri": "/elsewhere", "sha256": "c" * 64}}}, True),
        ({"backbone": {"name": "resnet18", "weights": {"uri": "s3://bucket/w", "sha256": "e" * 64}}}, False),
        ({"precision": "bfloat16"}, False),
        ({"seed": 8}, False),
    ],
)
def test_only_what_changes_a_result_changes_its_digest(changes: dict[str, Any], same: bool) -> None:
    other = parse(RECIPES["full"] | changes, Recipe, "changed")
    one, two = (digest(TrainReference(how, ARTIFACT, 0)) for how in (recipe("full"), other))
    assert (one == two) is same


def test_no_two_kinds_have_one_name() -> None:
    names = [kind.__name__ for kind in Job.__subclasses__()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["reference, head", "reference, divided", "score", "control, identity"])
def test_what_is_kept_of_weights_is_in_the_digest_only_if_something_is(name: str) -> None:
    job = jobs()[name]
    assert digest(replace(job, keeps=())) == DIGESTS[name]
    assert "keeps" not in json.dumps(describe(job))
    kept = {digest(replace(job, keeps=keeps)) for keeps in ((), ("head",), ("span",))}
    assert len(kept) == 3
