"""The candidate's own logits and confidences on every row."""

from collections.abc import Sequence

import numpy as np

from privacy_gate.arrays import Arrays
from privacy_gate.compute.images.backbone import candidate_head, candidate_tensors, joined
from privacy_gate.compute.training.command import score_by_command
from privacy_gate.compute.training.heads import confidences, head_logits
from privacy_gate.compute.training.judged import score_network
from privacy_gate.compute.training.parts import changed
from privacy_gate.compute.training.spans import network_span
from privacy_gate.compute.training.starts import public_network, span_refused
from privacy_gate.compute.work import Work
from privacy_gate.dossier.recipe import CommandRecipe
from privacy_gate.errors import CandidateError
from privacy_gate.jobs.kinds import Score


def run_score(jobs: Sequence[Score], work: Work) -> None:
    """Scores the candidate: by an external program, as a network, or as a head, depending on its recipe."""
    for job in jobs:
        work.results.put(job, _score(job, work))


def _score(job: Score, work: Work) -> Arrays:
    recipe = job.recipe
    folder, label, machine = work.inputs.candidate, work.inputs.data.label, work.machine
    if isinstance(recipe, CommandRecipe):
        return score_by_command(recipe, folder, work.inputs.data)
    if recipe.adaptation != "head":
        arrays = score_network(recipe, folder, work.images(recipe), label, machine)
        if "span" not in job.keeps or span_refused(recipe) is not None:
            return arrays
        tensors = candidate_tensors(folder, recipe, changed(recipe))
        span = network_span(public_network(recipe, machine), tensors, work.images(recipe), label, recipe, machine)
        return {**arrays, "span": span.astype(np.float32)}
    features, head = work.views(recipe), candidate_head(folder, recipe)
    if head.weight.shape[1] != features.shape[2]:
        raise CandidateError(
            f"the candidate's head reads {head.weight.shape[1]} features, the table has {features.shape[2]}: use the "
            "table and backbone that it was trained with"
        )
    answers = [confidences(view, label, [head], machine)[0][0] for view in features]
    arrays = {"logits": head_logits(features[0], head, machine), "confidence": np.mean(answers, axis=0)}
    return {**arrays, "head": joined(head)} if "head" in job.keeps else arrays
