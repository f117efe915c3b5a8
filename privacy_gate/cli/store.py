"""Commands for the store of results."""

from typing import TYPE_CHECKING, Annotated

import typer

from privacy_gate.cli.options import STORE, StoreRoot, now
from privacy_gate.cli.terminal import counted, progress_bar, say, say_table
from privacy_gate.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from privacy_gate.store.place import Place

app = typer.Typer(no_args_is_help=True, help="The store of results: list, prune, verify and merge.")


@app.command("list", epilog="Example: privacy-gate store list --store s3://gate/store")
def store_list(
    store: StoreRoot = STORE,
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, one per result.")] = False,
) -> None:
    """List the stored results: kind of job, recipe, size, age, and the torch version and device that made each."""
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
        str | None,
        typer.Option("--older-than", help="Delete results computed longer ago than this, for instance 12h, 30d or 8w."),
    ] = None,
    keep_recipe: Annotated[
        list[str] | None,
        typer.Option("--keep-recipe", help="Keep results of this recipe (its name in `store list`); repeatable."),
    ] = None,
    other_formats: Annotated[
        bool, typer.Option("--other-formats", help="Also delete results that this version of the gate cannot use.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list what would be deleted.")] = False,
) -> None:
    """Delete old results, and files that killed runs left half written. Notes and files being written are kept.

    The age of a result counts from its computation, no matter how often it was used since.
    """
    from privacy_gate.store import inventory, shelf

    # Without --yes this is a rehearsal: the same table, and nothing is deleted.
    limit, place = None if older_than is None else shelf.age(older_than), opened(store)
    waste = shelf.waste(place, now(), older_than=limit, keep=keep_recipe or (), other_formats=other_formats)
    if yes:
        shelf.remove(place, waste)
    say_table(inventory.HEADINGS, inventory.rows(waste.results, now()))
    say(inventory.pruned(waste, deleted=yes))


@app.command("verify", epilog="Example: privacy-gate store verify --delete-damaged")
def store_verify(
    store: StoreRoot = STORE,
    delete_damaged: Annotated[
        bool, typer.Option("--delete-damaged", help="Delete damaged files, so that they are computed again.")
    ] = False,
) -> None:
    """Read and check every result and note. Exits with 6 if a file is damaged and not deleted."""
    from privacy_gate.store.shelf import verify

    # All faults are printed before anything is deleted.
    place, read, faults = opened(store), 0, {}
    for path, fault in verify(place):
        read += 1
        if fault:
            faults[path] = fault
    deleted = " and deleted" if delete_damaged and faults else ""
    say("\n".join([*faults.values(), f"{counted(read, 'file')} read, {len(faults)} damaged{deleted}"]))
    if delete_damaged:
        for path in faults:
            place.remove(path)
    elif faults:
        raise typer.Exit(StoreError.exit_code)


@app.command("merge", epilog="Example: privacy-gate store merge shard-1 shard-2 --into s3://gate/store")
def store_merge(
    parts: Annotated[list[str], typer.Argument(help="Stores: folders or fsspec URLs.", show_default=False)],
    into: Annotated[str, typer.Option("--into", help="The store to merge them into.", show_default=False)],
    keep_first: Annotated[
        bool, typer.Option("--keep-first", help="If results contradict each other, keep the first.")
    ] = False,
) -> None:
    """Merge stores, for instance those of a CI matrix without a shared store."""
    from privacy_gate.store.place import Place
    from privacy_gate.store.union import merge

    with progress_bar() as progress:
        merged = merge([opened(part) for part in parts], Place(into), keep_first=keep_first, progress=progress)
    say(f"{counted(merged.copied, 'result')} copied, {merged.present} already present")


def opened(root: str) -> "Place":
    """The store at this place. Raises ConfigurationError if nothing is there.

    A misspelt path would otherwise look like an empty store, with no damage and nothing to delete.
    """
    from privacy_gate.store.place import Place

    place = Place(root)
    if not place.exists():
        raise ConfigurationError(f"store {root}: no such store; name one that `prepare` or `check` wrote")
    return place
