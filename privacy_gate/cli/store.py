"""The store of results."""

from typing import TYPE_CHECKING, Annotated

import typer

from privacy_gate.cli.options import STORE, StoreRoot, now
from privacy_gate.cli.terminal import progress_bar, say, say_table
from privacy_gate.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from privacy_gate.store.place import Place

app = typer.Typer(no_args_is_help=True, help="The store of results: see it, shrink it, check it, unite several.")


@app.command("list", epilog="Example: privacy-gate store list --store s3://gate/store")
def store_list(
    store: StoreRoot = STORE,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a result, a line each.")] = False,
) -> None:
    """Show what the store holds: kind of job, recipe, size, age, and which torch and device made it."""
    from privacy_gate.store import inventory
    from privacy_gate.store.shelf import entries

    listed = list(entries(opened(store)))
    if json_lines:
        say("\n".join(map(inventory.as_json, listed)))
    else:
        say_table(inventory.HEADINGS, inventory.rows(listed, now()))


@app.command("prune", epilog="Example: privacy-gate store prune --older-than 30d --keep-recipe 3f8a12b09c4d")
def store_prune(
    store: StoreRoot = STORE,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Computed longer ago than this: 12h, 30d, 8w.")
    ] = None,
    keep_recipe: Annotated[
        list[str] | None, typer.Option("--keep-recipe", help="Keep this recipe's, as `list` names it; repeatable.")
    ] = None,
    other_formats: Annotated[
        bool, typer.Option("--other-formats", help="Also results that this version of the gate cannot use.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it, only say what would go.")] = False,
) -> None:
    """Delete old results, and what killed runs left half written. What is being written stays, and so do notes.

    A result's age counts from when it was computed, however often it was used since.
    """
    from privacy_gate.store import inventory, shelf

    limit, place = None if older_than is None else shelf.age(older_than), opened(store)
    found = shelf.waste(place, now(), older_than=limit, keep=keep_recipe or (), other_formats=other_formats)
    if yes:
        shelf.remove(place, found)
    say_table(inventory.HEADINGS, inventory.rows(found.results, now()))
    say(inventory.pruned(found, deleted=yes))


@app.command("verify", epilog="Example: privacy-gate store verify --delete-damaged")
def store_verify(
    store: StoreRoot = STORE,
    delete_damaged: Annotated[
        bool, typer.Option("--delete-damaged", help="Delete what is damaged, so that it is computed again.")
    ] = False,
) -> None:
    """Read every result and note and check it. Exit code 6 where one is damaged and not deleted."""
    from privacy_gate.store.shelf import verify

    place, read, faults = opened(store), 0, {}
    for path, fault in verify(place):
        read += 1
        if fault:
            faults[path] = fault
    gone = " and deleted" if delete_damaged and faults else ""
    say("\n".join([*faults.values(), f"{read} files read, {len(faults)} damaged{gone}"]))
    if delete_damaged:
        for path in faults:
            place.remove(path)
    elif faults:
        raise typer.Exit(StoreError.exit_code)


@app.command("merge", epilog="Example: privacy-gate store merge shard-1 shard-2 --into s3://gate/store")
def store_merge(
    parts: Annotated[list[str], typer.Argument(help="Stores: folders or fsspec URLs.", show_default=False)],
    into: Annotated[str, typer.Option("--into", help="The store that takes them all.", show_default=False)],
    keep_first: Annotated[
        bool, typer.Option("--keep-first", help="Where results contradict each other, the first stays.")
    ] = False,
) -> None:
    """Unite stores, such as those of a CI matrix whose runners share none."""
    from privacy_gate.store.place import Place
    from privacy_gate.store.union import merge

    with progress_bar() as progress:
        merged = merge([opened(part) for part in parts], Place(into), keep_first=keep_first, progress=progress)
    say(f"{merged.copied} results copied, {merged.present} were there already")


def opened(root: str) -> "Place":
    """The store that is there; a misspelt one would pass for an empty one, in which nothing is damaged or missing."""
    from privacy_gate.store.place import Place

    place = Place(root)
    if not place.exists():
        raise ConfigurationError(f"store {root}: nothing is there; name one that `prepare` or `check` wrote")
    return place
