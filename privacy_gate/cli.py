"""The command `privacy-gate`: parse, call one function, print, exit. The only module that prints.

Only typer and rich are imported here at the start: `--help` must not wait for torch or mlflow.
"""

import datetime
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from privacy_gate.errors import INTERRUPTED, ConfigurationError, GateError, StoreError
from privacy_gate.progress import Progress, silent

if TYPE_CHECKING:
    from privacy_gate.compute.cluster import Cluster
    from privacy_gate.compute.machine import Machine
    from privacy_gate.report import Report

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def _say(text: str, *, error: bool = False) -> None:
    """Prints text that may come from a registry: control characters, which could steer a terminal, are replaced."""
    typer.echo(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).rstrip("\n"), err=error)


class _Gate(TyperGroup):
    """Turns the gate's errors and an interrupt into one message and their exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GateError as error:
            _say(f"privacy-gate: {error}", error=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _say("privacy-gate: interrupted; what is stored stays, run the same command to go on", error=True)
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=_Gate,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 approved, 1 bug, 2 usage or policy, 3 blocked, 4 undecided, 5 candidate refused, "
    "6 registry, storage or engine unavailable, 7 conflict, 130 interrupted. Only 0 promotes.",
)
dossier_app = typer.Typer(no_args_is_help=True, help="What a producer attaches to a model: recipe and data manifest.")
policy_app = typer.Typer(no_args_is_help=True, help="Policies: the limits a model must meet.")
app.add_typer(dossier_app, name="dossier")
app.add_typer(policy_app, name="policy")
store_app = typer.Typer(no_args_is_help=True, help="The store of results: see it, shrink it, check it, unite several.")
app.add_typer(store_app, name="store")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        _say(f"privacy-gate {version('privacy-gate')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Audit fine-tuned image models in a registry, and promote or block them by a policy."""


Uri = Annotated[str, typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS", show_default=False)]
PolicyFile = Annotated[Path, typer.Option("--policy", "-p", help="The policy, a YAML file.", show_default=False)]
StoreRoot = Annotated[
    str,
    typer.Option("--store", "-s", envvar="PRIVACY_GATE_STORE", help="Where results are kept: a folder or fsspec URL."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")]
Tracking = Annotated[
    str | None, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="The MLflow server or database.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. Changes speed, never a result.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Threads that feed a GPU with decoded images.")]
Part = Annotated[str, typer.Option("--shard", help="i/n: do part i of n, for a CI matrix that shares one store.")]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="Where work is done: on this machine, or on a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", envvar="RAY_ADDRESS", help="The cluster; default: one on this machine alone."),
]
Gpus = Annotated[float, typer.Option("--gpus-per-task", min=0, help="Ray: share of a GPU each task takes; 0: CPUs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written to the registry; write nothing.")]
Expect = Annotated[
    str | None,
    typer.Option("--expect-current", help="Refuse unless the alias is at this version now ('none': not set)."),
]

Thumbnails = Annotated[
    Path | None,
    typer.Option("--thumbnails", help="Also write the listed examples' images to this file. Shows training records."),
]

STORE = "privacy-gate-store"
OUTPUT = Path("privacy-gate-report")
_FAMILIES = "epochs, weight-decay, label-smoothing, drop or dp-sgd"


@app.command(epilog="Example: privacy-gate check models:/digits@candidate --policy policies/baseline.yaml")
def check(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    output: Output = OUTPUT,
    tracking_uri: Tracking = None,
    device: Device = "auto",
    workers: Workers = None,
    promote: Annotated[bool, typer.Option("--promote/--no-promote", help="Write the decision to the registry.")] = True,
    expect_current: Expect = None,
    dry_run: DryRun = False,
    thumbnails: Thumbnails = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    gpus_per_task: Gpus = 0,
) -> None:
    """Run the whole pass: pull, measure, judge, report, promote or block."""
    from privacy_gate import gate

    with _progress() as progress:
        report, files = gate.check(
            uri,
            policy,
            store=store,
            output=output,
            tracking_uri=tracking_uri,
            machine=_machine(device, workers),
            now=_now(),
            progress=progress,
            thumbnails=thumbnails,
            cluster=_cluster(engine, ray_address, gpus_per_task),
        )
    _say(_summary(report))
    _say("\n".join(f"report: {path}" for path in files))
    if promote:
        _decide(report, output, tracking_uri, expect_current=expect_current, dry_run=dry_run)
    raise typer.Exit(report.exit_code)


@app.command(epilog="Example: privacy-gate prepare models:/digits/3 --policy policies/baseline.yaml --shard 2/4")
def prepare(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    tracking_uri: Tracking = None,
    device: Device = "auto",
    workers: Workers = None,
    shard: Part = "1/1",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    gpus_per_task: Gpus = 0,
) -> None:
    """Compute what the policy needs (the slow, resumable step; needs no right to write to the registry)."""
    from privacy_gate import gate
    from privacy_gate.audit import Shard

    part, cluster = Shard.parse(shard), _cluster(engine, ray_address, gpus_per_task)
    opened = gate.open_case(uri, policy, store=store, tracking_uri=tracking_uri, now=_now())
    with _progress() as progress, opened as case:
        done, stored = gate.prepare(case, _machine(device, workers), part, progress, cluster)
    _say(f"{done} jobs computed, {stored} were stored already")


@app.command(epilog="Example: privacy-gate audit models:/digits/3 --policy policies/baseline.yaml")
def audit(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    output: Output = OUTPUT,
    tracking_uri: Tracking = None,
    thumbnails: Thumbnails = None,
) -> None:
    """Judge what `prepare` stored and write the report (CPU, seconds)."""
    from privacy_gate import gate

    opened = gate.open_case(uri, policy, store=store, tracking_uri=tracking_uri, now=_now())
    with _progress() as progress, opened as case:
        if thumbnails:
            gate.refuse_thumbnails(thumbnails, output, case.policy)
        report = case.audit(_now(), progress)
        if thumbnails:
            gate.write_thumbnails(thumbnails, report, case.data)
    files = gate.write(report, output)
    _say(_summary(report))
    _say("\n".join(f"report: {path}" for path in files))
    raise typer.Exit(report.exit_code)


@app.command(epilog="Example: privacy-gate advise models:/digits/3 --policy policies/baseline.yaml --epsilon 8")
def advise(
    uri: Uri,
    policy: PolicyFile,
    store: StoreRoot = STORE,
    output: Output = OUTPUT,
    tracking_uri: Tracking = None,
    device: Device = "auto",
    workers: Workers = None,
    references: Annotated[int, typer.Option(min=8, max=10_000, help="Models trained for each alternative.")] = 32,
    epsilon: Annotated[list[float] | None, typer.Option(min=0.01, help="DP-SGD at this epsilon; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"{_FAMILIES}: try no other; repeatable.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Do not try this one; repeatable.")] = None,
) -> None:
    """Measure what other recipes would leak and cost: fewer epochs, weight decay, and others. Decides nothing."""
    from privacy_gate import gate
    from privacy_gate.alternatives import families
    from privacy_gate.reports.advice_page import table

    chosen = families(only or (), skip or ())
    opened = gate.open_case(uri, policy, store=store, tracking_uri=tracking_uri, now=_now())
    with _progress() as progress, opened as case:
        advised, computed = gate.advise(
            case,
            _machine(device, workers),
            references=references,
            families=chosen,
            epsilons=epsilon or (),
            now=_now(),
            progress=progress,
        )
    files = gate.write_advice(advised, output)
    _say(table(advised))
    _say("\n".join([f"{computed} jobs computed", *(f"advice: {path}" for path in files)]))


ReportFile = Annotated[Path, typer.Argument(help="A report.json that audit or check wrote.", show_default=False)]


@app.command(epilog="Example: privacy-gate report privacy-gate-report/report.json --format markdown")
def report(
    path: ReportFile,
    format: Annotated[str, typer.Option("--format", "-f", help="text, markdown, html or json.")] = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: standard output.")] = None,
) -> None:
    """Show a stored report in another format."""
    from privacy_gate.documents import nearest
    from privacy_gate.reports import FORMATS

    if format not in FORMATS:
        raise ConfigurationError(f"--format {format}: no such format; {nearest(format, FORMATS)}")
    text = FORMATS[format].render(_load(path))
    if output is None:
        _say(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output}: {error.strerror}; name a file that can be written") from error


@app.command(epilog="Example: privacy-gate promote privacy-gate-report/report.json --expect-current 2")
def promote(
    path: ReportFile,
    tracking_uri: Tracking = None,
    expect_current: Expect = None,
    dry_run: DryRun = False,
) -> None:
    """Act on a report: move the alias if it approves, else record why not. Hashes the artifact again first."""
    found = _load(path)
    _decide(found, path.parent, tracking_uri, expect_current=expect_current, dry_run=dry_run)
    raise typer.Exit(found.exit_code)


@app.command(epilog="Example: privacy-gate demo --folder demo")
def demo(
    folder: Annotated[Path, typer.Option(help="A fresh folder for the registry, the store and the reports.")] = Path(
        "demo"
    ),
) -> None:
    """Gate three real models on an embedded registry: one leaks, one is approved, one's federation is breakable."""
    from privacy_gate.demo import run_demo

    with _progress() as progress:
        outcomes = run_demo(folder, _now(), progress)
    for outcome in outcomes:
        _say(f"== {outcome.title}")
        _say(_summary(outcome.report))
        _say("\n".join(f"   {line}" for line in outcome.lines) + "\n")
    if any(outcome.report.exit_code != outcome.expected for outcome in outcomes):
        raise GateError("the demo expects its verdicts to be blocked, approved, blocked: please report this run")


@app.command(epilog="Example: privacy-gate attacks")
def attacks() -> None:
    """List the membership attacks: what each needs, costs and assumes."""
    from privacy_gate.attacks import ATTACKS

    rows = ((name, attack.needs, attack.cost, attack.assumes, attack.source) for name, attack in ATTACKS.items())
    _table(("attack", "needs", "cost", "assumes", "source"), rows)


@dossier_app.command("lint", epilog="Example: privacy-gate dossier lint dossier/ --table")
def dossier_lint(
    path: Annotated[Path, typer.Argument(help="A folder with recipe.yaml and data.yaml.", show_default=False)],
    table: Annotated[bool, typer.Option("--table", help="Read the audit table too, and its images.")] = False,
) -> None:
    """Check a dossier before it is attached to a model."""
    from privacy_gate.lint import lint_dossier

    _say("\n".join(lint_dossier(path, read_table=table)))


@policy_app.command("lint", epilog="Example: privacy-gate policy lint policies/baseline.yaml --holdout 1000")
def policy_lint(
    path: Annotated[Path, typer.Argument(help="A policy file.", show_default=False)],
    holdout: Annotated[int | None, typer.Option(min=0, help="Holdout examples you have.")] = None,
) -> None:
    """Check a policy, and say how many holdout examples its limits need."""
    from privacy_gate.lint import lint_policy

    _say("\n".join(lint_policy(path, holdout)))


@store_app.command("list", epilog="Example: privacy-gate store list --store s3://gate/store")
def store_list(
    store: StoreRoot = STORE,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a result, a line each.")] = False,
) -> None:
    """Show what the store holds: kind of job, recipe, size, age, and which torch and device made it."""
    from privacy_gate.store import inventory
    from privacy_gate.store.place import Place
    from privacy_gate.store.shelf import entries

    listed = list(entries(Place(store)))
    if json_lines:
        _say("\n".join(map(inventory.as_json, listed)))
    else:
        _table(inventory.HEADINGS, inventory.rows(listed, _now()))


@store_app.command("prune", epilog="Example: privacy-gate store prune --older-than 30d --keep-recipe 3f8a12b09c4d")
def store_prune(
    store: StoreRoot = STORE,
    older_than: Annotated[str | None, typer.Option("--older-than", help="Older than this: 12h, 30d, 8w.")] = None,
    keep_recipe: Annotated[
        list[str] | None, typer.Option("--keep-recipe", help="Keep this recipe's, as `list` names it; repeatable.")
    ] = None,
    other_formats: Annotated[
        bool, typer.Option("--other-formats", help="Also results that this version of the gate cannot use.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it, only say what would go.")] = False,
) -> None:
    """Delete old results, and what killed runs left half written. What is being written stays, and so do notes."""
    from privacy_gate.store import inventory, shelf
    from privacy_gate.store.place import Place

    place, limit = Place(store), None if older_than is None else shelf.age(older_than)
    found = shelf.waste(place, _now(), older_than=limit, keep=keep_recipe or (), other_formats=other_formats)
    if yes:
        shelf.remove(place, found)
    _table(inventory.HEADINGS, inventory.rows(found.results, _now()))
    _say(inventory.told(found, deleted=yes))


@store_app.command("verify", epilog="Example: privacy-gate store verify --delete-damaged")
def store_verify(
    store: StoreRoot = STORE,
    delete_damaged: Annotated[
        bool, typer.Option("--delete-damaged", help="Delete what is damaged, so that it is computed again.")
    ] = False,
) -> None:
    """Read every result and check it. Exit code 6 where one is damaged and not deleted."""
    from privacy_gate.store.place import Place
    from privacy_gate.store.shelf import verify

    place, read, faults = Place(store), 0, {}
    for path, fault in verify(place):
        read += 1
        if fault:
            faults[path] = fault
    _say("\n".join([*faults.values(), f"{read} results read, {len(faults)} damaged"]))
    if delete_damaged:
        for path in faults:
            place.remove(path)
    elif faults:
        raise typer.Exit(StoreError.exit_code)


@store_app.command("merge", epilog="Example: privacy-gate store merge shard-1 shard-2 --into s3://gate/store")
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

    with _progress() as progress:
        merged = merge([Place(part) for part in parts], Place(into), keep_first=keep_first, progress=progress)
    _say(f"{merged.copied} results copied, {merged.present} were there already")


def _decide(
    report: "Report", folder: Path, tracking_uri: str | None, *, expect_current: str | None, dry_run: bool
) -> None:
    """Writes the decision to the registry and says what was written."""
    from privacy_gate import gate

    lines = gate.decide(report, folder, tracking_uri=tracking_uri, expect_current=expect_current, dry_run=dry_run)
    _say("\n".join(lines))


def _load(path: Path) -> "Report":
    from privacy_gate.report import load_report

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name a report.json that audit wrote") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text; name a report.json that audit wrote") from error
    return load_report(text, str(path))


def _summary(report: "Report") -> str:
    from privacy_gate.reports import FORMATS

    return FORMATS["text"].render(report)


def _machine(device: str, workers: int | None) -> "Machine":
    from privacy_gate.compute.machine import Machine

    return Machine(device=device) if workers is None else Machine(device=device, workers=workers)


def _cluster(engine: str, address: str | None, gpus: float) -> "Cluster | None":
    if engine == "local":
        return None
    from privacy_gate.compute.cluster import Cluster

    return Cluster(address, gpus)


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints rows of text, none of it marked up; control characters are replaced, as in `_say`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", cell)) for cell in row))
    # A file or a pipe is as wide as it needs to be.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A rich progress bar on stderr; nothing where nobody watches."""
    if not sys.stderr.isatty() or os.environ.get("CI"):
        yield silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done, total=total)

        yield show


def main() -> None:
    """The console script's entry."""
    app()
