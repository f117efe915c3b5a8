"""Says what is wrong, or what will be needed, before anything is computed."""

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
    """What the policy asks for, and how many holdout rows that needs; raises ConfigurationError.

    Limits that ask for nothing are warned of, and not refused: a policy may want a figure in its report, and no more.
    """
    policy, sha256 = load_policy(path)
    lines = [f"{path}: sound; policy '{policy.name}' version {policy.version}, sha256 {sha256}"]
    for place, check in enumerate(policy.checks):
        lines += [f"  {check.name}: {metric} {limit} ({limit.severity})" for metric, limit in check.bounds.items()]
        if isinstance(check, WhereDeclared) and not check.required and check.bounds:
            lines.append(f"  {check.name}: not required: a dossier that declares too little is let pass")
        if isinstance(check, Versus):
            lines += [f"  {check.name}: {metric}: {rule}" for metric, rule in check.vacancies.items()]
            lines += [_alike(*each, holdout) for each in check.rows_to_agree(policy.confidence).items()]
        lines += [_need(metric, needed, holdout) for metric, needed in check.needed_holdout(policy.confidence).items()]
        lines += [
            _idle(path, place, metric, limit) for metric, limit in check.bounds.items() if asks_nothing(metric, limit)
        ]
    return lines


def _idle(path: Path, place: int, metric: str, limit: Limit) -> str:
    sides = ("champion_drop", "champion_rise") if metric.endswith(SUFFIX) else ("min", "max")
    key = ("checks", place, "limits", metric.removesuffix(SUFFIX), sides[limit.max is not None])
    where = locate(_text(path), key, str(path))
    return f"  {where}: warning: every {metric} is {limit}: the limit asks for one to be measured, and no more"


def _need(metric: str, needed: int | None, holdout: int | None) -> str:
    if needed is None:
        return f"  {metric}: no number of holdout rows meets this limit: relax it, or let the check use more of them"
    line = f"  {metric} needs at least {needed:,} holdout rows to meet its limit"
    return line if holdout is None or holdout >= needed else f"{line}: with your {holdout:,} no model does"


def _alike(metric: str, needed: int | None, holdout: int | None) -> str:
    """Of a limit relative to the champion."""
    if needed is None:
        return (
            f"  {metric}: on no number of holdout rows does a candidate that agrees with the champion on each meet "
            "this limit, but only a better one: relax it, or let the check use more of them"
        )
    line = f"  {metric} needs {needed:,} holdout rows to let a candidate pass that agrees with the champion on each"
    if holdout is None or holdout >= needed:
        return line
    return f"{line}: warning: with your {holdout:,} none does"


def lint_dossier(folder: Path, *, read_table: bool) -> list[str]:
    """What the dossier describes; raises a GateError for what is wrong with it or its table."""
    recipe = load(_text(folder / "recipe.yaml"), Recipe, str(folder / "recipe.yaml"))
    manifest = load(_text(folder / "data.yaml"), DataManifest, str(folder / "data.yaml"))
    lines = [
        f"{folder}: sound; backbone {recipe.backbone.name}, adaptation {recipe.adaptation}, "
        f"{recipe.classes} classes, {recipe.epochs} epochs of {recipe.optimizer.name}"
    ]
    if (folder / "claim.yaml").exists():
        claim = load(_text(folder / "claim.yaml"), Claim, str(folder / "claim.yaml"))
        lines.append(f"  claims epsilon {claim.epsilon:g} at delta {claim.delta:g}")
    if read_table:
        data = read_data(manifest, recipe.classes)
        refuse_untrainable(recipe, data)
        lines += lint_data(data)
    return lines


def lint_data(data: AuditData) -> list[str]:
    """Sizes of the table, and what would spoil an audit with it."""
    counts = {split: int((data.split == split).sum()) for split in Split}
    lines = [f"  {split.name.lower()}: {count:,} rows" for split, count in counts.items()]
    lines += [
        f"  {metric} needs at least {needed_holdout(fpr):,} holdout rows to be measured: with your "
        f"{counts[Split.HOLDOUT]:,} a policy that limits it leaves the verdict undecided"
        for metric, fpr in TPRS.items()
        if needed_holdout(fpr) > counts[Split.HOLDOUT]
    ]
    if (chance := same_mix(data.label, data.split)) < LEVEL:
        lines.append(
            f"  warning: classes are mixed differently among members and holdout (p = {chance:.1g}): attacks would "
            "measure that difference; draw both from one population at random"
        )
    if twins := duplicates(data):
        shown = ", ".join(f"{member} = {holdout}" for member, holdout in twins[:5])
        lines.append(
            f"  warning: {len(twins)} images stand among members and holdout both ({shown}): remove them from one"
        )
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; a dossier is a folder with both files") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text") from error
