"""Checks policies and dossiers before anything is computed: their faults, and the data they will need."""

from pathlib import Path

from privacy_gate.auditing.policy import load_policy
from privacy_gate.checks.base.check import WhereDeclared, asks_nothing
from privacy_gate.checks.base.federations import refuse_untrainable
from privacy_gate.checks.base.versus import Versus
from privacy_gate.checks.membership import TPRS
from privacy_gate.documents import load, locate
from privacy_gate.dossier.candidate import Claim
from privacy_gate.dossier.dataset import AuditData, DataManifest, Split, duplicates, read_data
from privacy_gate.dossier.recipe import Recipe
from privacy_gate.errors import ConfigurationError
from privacy_gate.metrics.controls.self_tests import LEVEL, same_mix
from privacy_gate.metrics.rates import needed_holdout
from privacy_gate.verdict.judgement import Limit
from privacy_gate.verdict.metric import SUFFIX


def lint_policy(path: Path, holdout: int | None) -> list[str]:
    """Lines about each limit of the policy and the holdout rows it needs. Raises ConfigurationError.

    A limit that every value meets gets a warning and is not refused: a policy may only want the figure in its report.
    """
    policy, sha256 = load_policy(path)
    lines = [f"{path}: valid; policy '{policy.name}' version {policy.version}, sha256 {sha256}"]
    for place, check in enumerate(policy.checks):
        lines += [f"  {check.name}: {metric} {limit} ({limit.severity})" for metric, limit in check.bounds.items()]
        if isinstance(check, WhereDeclared) and not check.required and check.bounds:
            lines.append(f"  {check.name}: required: false: a dossier without what the check needs passes it")
        # Only these checks can be relative to the champion, and say what happens without one.
        if isinstance(check, Versus):
            lines += [f"  {check.name}: {metric}: {rule}" for metric, rule in check.vacancies.items()]
            lines += [_alike(*each, holdout) for each in check.rows_to_agree(policy.confidence).items()]
        lines += [_need(metric, needed, holdout) for metric, needed in check.needed_holdout(policy.confidence).items()]
        lines += [
            _idle(path, place, metric, limit) for metric, limit in check.bounds.items() if asks_nothing(metric, limit)
        ]
    return lines


def _idle(path: Path, place: int, metric: str, limit: Limit) -> str:
    # The file has champion_drop or champion_rise at the plain metric; inside, it is a bound on the difference.
    sides = ("champion_drop", "champion_rise") if metric.endswith(SUFFIX) else ("min", "max")
    key = ("checks", place, "limits", metric.removesuffix(SUFFIX), sides[limit.max is not None])
    position = locate(_text(path), key, str(path))
    return f"  {position}: warning: every {metric} is {limit}, so this limit only asks for the metric to be measured"


def _need(metric: str, needed: int | None, holdout: int | None) -> str:
    if needed is None:
        return (
            f"  {metric}: no model can meet this limit with any number of holdout rows: relax it, or let the check use "
            "more rows"
        )
    line = f"  {metric} needs at least {needed:,} holdout rows to meet its limit"
    return line if holdout is None or holdout >= needed else f"{line}: with your {holdout:,} no model can"


def _alike(metric: str, needed: int | None, holdout: int | None) -> str:
    """The rows that a limit relative to the champion needs, so that an equally good candidate can pass."""
    if needed is None:
        return (
            f"  {metric}: a candidate that agrees with the champion on every row cannot meet this limit with any "
            "number of holdout rows, only a better one can: relax it, or let the check use more rows"
        )
    line = f"  {metric}: a candidate that agrees with the champion on every row needs {needed:,} holdout rows to pass"
    if holdout is None or holdout >= needed:
        return line
    return f"{line}: warning: with your {holdout:,} it cannot"


def lint_dossier(folder: Path, *, read_table: bool) -> list[str]:
    """Lines that describe the dossier. Raises a GateError if it, or its table, is faulty."""
    recipe = load(_text(folder / "recipe.yaml"), Recipe, str(folder / "recipe.yaml"))
    manifest = load(_text(folder / "data.yaml"), DataManifest, str(folder / "data.yaml"))
    lines = [
        f"{folder}: valid; backbone {recipe.backbone.name}, adaptation {recipe.adaptation}, "
        f"{recipe.classes} classes, {recipe.epochs} epochs of {recipe.optimizer.name}"
    ]
    # A claim of differential privacy is optional.
    if (folder / "claim.yaml").exists():
        claim = load(_text(folder / "claim.yaml"), Claim, str(folder / "claim.yaml"))
        lines.append(f"  claims epsilon {claim.epsilon:g} at delta {claim.delta:g}")
    if read_table:
        data = read_data(manifest, recipe.classes)
        refuse_untrainable(recipe, data)
        lines += lint_data(data)
    return lines


def lint_data(data: AuditData) -> list[str]:
    """Sizes of the table, and warnings about anything in it that would distort an audit."""
    counts = {split: int((data.split == split).sum()) for split in Split}
    lines = [f"  {split.name.lower()}: {count:,} rows" for split, count in counts.items()]
    lines += [
        f"  {metric} needs at least {needed_holdout(fpr):,} holdout rows to be measured: with your "
        f"{counts[Split.HOLDOUT]:,} the verdict of a policy that limits it is undecided"
        for metric, fpr in TPRS.items()
        if needed_holdout(fpr) > counts[Split.HOLDOUT]
    ]
    # Attacks must separate trained from untrained examples. If the classes differ, they separate classes instead.
    if (p_value := same_mix(data.label, data.split)) < LEVEL:
        lines.append(
            f"  warning: members and holdout have different class frequencies (p = {p_value:.1g}), and attacks would "
            "measure that difference: draw both at random from one population"
        )
    if twins := duplicates(data):
        examples = ", ".join(f"{member} = {holdout}" for member, holdout in twins[:5])
        lines.append(
            f"  warning: {len(twins)} images are in members and in holdout ({examples}): remove them from one split"
        )
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; a dossier holds recipe.yaml and data.yaml") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text") from error
