"""What `fxrebasin merge` does: read, align, combine, mend, measure, write, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fxrebasin
from fxrebasin.cli import numbers
from fxrebasin.cli.aligning import Aligned, align, default_method
from fxrebasin.cli.documents import (
    card,
    checkpoint_document,
    command_document,
    digest_facts,
    matching_document,
    permutation_document,
)
from fxrebasin.cli.ingredients import Ingredients, classes_by_tensor
from fxrebasin.cli.measuring import Measured, between, losses
from fxrebasin.cli.options import (
    AS_THEY_ARE,
    ROUNDS,
    WEIGHTS_SUFFIXES,
    HowToMatch,
    HowToRead,
    Inputs,
    Limits,
    Talk,
    Target,
)
from fxrebasin.cli.plans import show_plan
from fxrebasin.cli.talking import finite, say, show
from fxrebasin.cli.units import check_units_picture, draw_units
from fxrebasin.cli.user_objects import batches, function
from fxrebasin.cli.work import open_bench, read_for, refuse_target, split_models, write_weights
from fxrebasin.errors import InputError
from fxrebasin.facts import counted
from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.combinations import Combination, Formula
from fxrebasin.merge.states import own_state, tied_names
from fxrebasin.progress import waiting
from fxrebasin.running.batches import State
from fxrebasin.storage.files import publish, together
from fxrebasin.wording import listed

_REPORT_IN_FOLDER = "fxrebasin.json"
_SHOWN = 5
_STEPS = 11
METHOD = "weight"


@dataclass(frozen=True)
class Numbers:
    """What a formula is given, as it was written."""

    weights: tuple[str, ...]
    position: tuple[str, ...]
    density: tuple[str, ...]
    scale: float


@dataclass(frozen=True)
class Merge:
    """What the options of the command say, beside those that other commands have.

    Args:
        arguments: MODEL and checkpoints.
        formula: name of the formula for weights.
        numbers: that it is given.
        base: what differences are taken from.
        recalibrate: source of data for BatchNorm statistics.
        repair: source of data for REPAIR.
        evaluate: name of a function from a model to its loss.
        picture: of the losses between the models, or of their units.
        report: whether a report is written beside the result.
    """

    arguments: tuple[str, ...]
    formula: Formula
    numbers: Numbers
    base: Path | None
    recalibrate: str | None
    repair: str | None
    evaluate: str | None
    picture: Path | None
    report: bool

    def check(self, count: int) -> None:
        """Refuse options that do not go together, before any work.

        Args:
            count: of the checkpoints.

        Raises:
            InputError: saying which.
        """
        two = {"--repair": self.repair, "--picture": self.picture, "--t": self.numbers.position}
        for option, value in two.items():
            if value and count != 2:
                raise InputError(f"{option} is for two checkpoints; there are {count}")
        if self.recalibrate is not None and self.repair is not None:
            raise InputError("--repair takes BatchNorm statistics anew, too: leave --recalibrate")
        if self.formula.needs_base and self.base is None:
            raise InputError(
                f"--combine {self.formula.value} works on differences from a checkpoint that all "
                "were trained from: name it with --base"
            )
        if not self.formula.needs_base and self.base is not None:
            raise InputError(f"--combine {self.formula.value} has no use for --base")
        if self.numbers.density and self.formula not in (Formula.TIES, Formula.DARE):
            raise InputError(f"--combine {self.formula.value} has no use for --density")
        if self.numbers.position and self.formula.needs_base:
            raise InputError(f"--combine {self.formula.value} has no use for --t")
        if self.numbers.weights and (self.numbers.position or self.formula is Formula.SLERP):
            raise InputError("--t and --weights say the same: leave one out (slerp takes --t)")

    def needing_models(self, matching: HowToMatch, count: int) -> dict[str, object]:
        """Values of options, by name, that need whole models where they are given.

        Args:
            matching: how units are matched.
            count: of the checkpoints.
        """
        joint = default_method(count) if matching.method is None else METHOD
        return {
            f"--method {joint} (the default for several checkpoints; --method {ROUNDS} and "
            f"--method {METHOD} are for this)": joint != METHOD,
            "--recalibrate": self.recalibrate,
            "--repair": self.repair,
            "--evaluate": self.evaluate,
            "--picture": self.picture,
        }

    def combination(self, count: int, seed: int, aligned: Aligned) -> Combination:
        """The formula with its numbers.

        Args:
            count: of the checkpoints.
            seed: of dare.
            aligned: has the classes that patterns may name.

        Raises:
            InputError: a number cannot be read, or does not fit.
        """
        classes = classes_by_tensor(aligned)
        given = self.numbers
        weights = numbers.weights(given.weights, count, classes)
        t = numbers.single("--t", given.position, 0.5, classes)
        if self.formula is Formula.MEAN and given.position:
            rules = tuple((pattern, (1 - value, value)) for pattern, value in t.rules)
            weights = ByPattern((1 - t.everywhere, t.everywhere), rules, classes)
        density = None
        if given.density:
            default = Combination(self.formula).usual_density
            density = numbers.single("--density", given.density, default, classes)
        made = Combination(self.formula, weights, t, density, given.scale, seed)
        made.check(count, self.base is not None)
        return made


def run_merge(
    task: Merge,
    target: Target,
    how: tuple[HowToMatch, HowToRead, Inputs],
    limits: Limits,
    talk: Talk,
) -> None:
    """Do all of it.

    Args:
        task: what is merged, and by which formula.
        target: where the result goes.
        how: units are matched, checkpoints read, and the model run.
        limits: of memory.
        talk: what is printed.
    """
    from fxrebasin.cli.large import Result, room_for
    from fxrebasin.cli.large_merge import merge_large

    matching, reading, inputs = how
    model, paths = split_models(task.arguments)
    reports = report_places(task, target)
    read = read_for(model, *paths, task.base)
    beside = [place for place in reports if place.parent != target.out]
    refuse_target(target, task.picture, *beside, inputs=read)
    task.check(len(paths))
    if task.evaluate is None:
        check_units_picture(task.picture, matching)
    task.combination(len(paths), matching.seed, Aligned(AS_THEY_ARE, (), ()))
    bases = [] if task.base is None else [task.base]
    needing = task.needing_models(matching, len(paths))
    room = room_for(model, [*paths, *bases], how, limits, needing, [Result(target, 0, False)])
    if room is not None:
        merge_large(task, room, target, how, limits, talk)
        return
    bench = open_bench(model, inputs, reading)
    if talk.dry_run:
        show_plan(bench, [*paths, *bases], inputs, talk, "merge", target.out)
        return
    evaluate = None if task.evaluate is None else function(task.evaluate, "--evaluate")
    checkpoints = tuple(bench.read(path) for path in paths)
    base = None if task.base is None else bench.read(task.base)
    everything = checkpoints if base is None else (*checkpoints, base)
    method = matching.method or default_method(len(checkpoints))
    made_of = Ingredients(
        bench, checkpoints, base, align(bench, everything, method, matching, inputs)
    )
    combination = task.combination(len(paths), matching.seed, made_of.aligned)
    check_patterns(combination, made_of)
    with waiting("merging"):
        merged = made_of.combined(combination)
    merged = _mended(task, made_of, combination, merged)
    measured = None if evaluate is None else _measured(task, made_of, combination, merged, evaluate)
    document = merge_document(model, made_of, combination, (task, matching), measured)
    facts = merge_facts(model, made_of, combination, task, measured)
    text = card(target.out.stem, [*facts, *merge_digests(made_of)], ["merge"])
    with together():
        files = [*write_weights(target, checkpoints[0], merged, text)]
        if task.picture is not None:
            files += _drawn(task.picture, made_of, measured, target)
        document["files"] = [str(path) for path in (*files, *reports)]
        write_reports(reports, text, document, target)
    show(talk, facts, document)
    for path in (*files, *reports):
        if path.parent != target.out:  # what is in the folder belongs to it
            say(talk, f"wrote {path}")


def _drawn(
    picture: Path, made_of: Ingredients, measured: Measured | None, target: Target
) -> list[Path]:
    """The picture of the losses if they were measured, else that of the units."""
    if measured is not None:
        return [measured.draw(picture, target.overwrite)]
    a, b = made_of.checkpoints
    certificate = made_of.aligned.permutations[1]
    return draw_units(picture, (a, b), certificate, overwrite=target.overwrite)


def report_places(task: Merge, target: Target) -> list[Path]:
    """Where the report goes: beside a file, or into a folder, whose card is written with it.

    Args:
        task: whether there is one.
        target: where the result goes.
    """
    if not task.report:
        return []
    if target.out.suffix in WEIGHTS_SUFFIXES:
        return [target.out.with_suffix(".json"), target.out.with_suffix(".md")]
    return [target.out / _REPORT_IN_FOLDER]


def write_reports(
    places: Sequence[Path], text: str, document: Mapping[str, Any], target: Target
) -> None:
    """Write what was done.

    Args:
        places: from `report_places`.
        text: for people.
        document: for programs.
        target: of the result; a report in its folder replaces that of an earlier one.
    """
    for place in places:
        content = text if place.suffix == ".md" else json.dumps(finite(document), indent=2)
        overwrite = target.overwrite or place.parent == target.out
        publish(place, f"{content.rstrip()}\n".encode(), overwrite=overwrite)


def check_patterns(combination: Combination, made_of: Ingredients) -> None:
    """Refuse patterns that fit no tensor.

    Args:
        combination: whose numbers are for patterns.
        made_of: has the tensors.

    Raises:
        InputError: naming what comes nearest.
    """
    ties = tied_names(made_of.bench.module)
    tied = {other: first for first, *others in ties for other in others}
    names = [name for name in made_of.checkpoints[0].state if name not in tied]
    given = (combination.weights, combination.t, combination.density)
    for option, values in zip(("--weights", "--t", "--density"), given, strict=True):
        if values is not None:
            values.check(names, option, tied)


def _mended(
    task: Merge, made_of: Ingredients, combination: Combination, merged: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The merged weights with statistics taken anew, or after REPAIR, in the dtypes they had."""
    bench = made_of.bench
    if task.recalibrate is None and task.repair is None:
        return merged
    bench.module.load_state_dict(merged, strict=False)
    if task.recalibrate is not None:
        loader = batches(task.recalibrate, "--recalibrate", bench)
        mended = fxrebasin.recalibrate(bench.module, loader)
    else:
        loader = batches(str(task.repair), "--repair", bench)
        a, b = (made_of.whole(index) for index in range(2))
        mended = fxrebasin.repair(bench.module, a, b, loader, combination.middle)
    state = own_state(mended)
    new = [name for name in state if name not in merged and name not in bench.module.state_dict()]
    if new:
        raise InputError(
            f"REPAIR gives layers a bias that have none, which {bench.name} cannot hold: "
            f"{listed(new, _SHOWN)}. Use --recalibrate"
        )
    return {name: state[name].to(tensor.dtype) for name, tensor in merged.items()}


def _measured(
    task: Merge,
    made_of: Ingredients,
    combination: Combination,
    merged: State,
    evaluate: Any,
) -> Measured:
    prepare = None
    if task.recalibrate is not None:
        loader = batches(task.recalibrate, "--recalibrate", made_of.bench)
        prepare = partial(fxrebasin.recalibrate, loader=loader)
    curves = between(made_of, evaluate, _STEPS, prepare) if len(made_of.checkpoints) == 2 else ()
    unaligned = None
    if made_of.aligned.method != AS_THEY_ARE:
        plain = made_of.combined(combination, aligned=False)
        unaligned = _mended(task, made_of, combination, plain)
    return Measured(losses(made_of, evaluate, merged, unaligned), curves)


def merge_document(
    model: str,
    made_of: Ingredients,
    combination: Combination,
    how: tuple[Merge, HowToMatch],
    measured: Measured | None,
) -> dict[str, Any]:
    """What was done, for programs.

    Args:
        model: its name.
        made_of: the checkpoints, and the order of their units.
        combination: what was computed.
        how: what was merged, and how units were matched.
        measured: losses, if they were asked for.
    """
    task, matching = how
    aligned = made_of.aligned
    return {
        **command_document("merge"),
        "model": model,
        "checkpoints": [checkpoint_document(checkpoint) for checkpoint in made_of.checkpoints],
        "base": None if made_of.base is None else checkpoint_document(made_of.base),
        "method": aligned.method,
        "seed": matching.seed,
        "alignments": [_alignment(aligned, index) for index in range(len(made_of.everything))],
        "combine": {**combination.document(), "base": task.base and str(task.base)},
        "from_the_first": list(made_of.kept),
        "recalibrate": task.recalibrate,
        "repair": task.repair,
        "evaluation": None if measured is None else measured.document(),
        "notes": _notes(made_of),
    }


def _alignment(aligned: Aligned, index: int) -> dict[str, Any] | None:
    report, permutation = aligned.reports[index], aligned.permutations[index]
    if report is not None:
        return matching_document(report)
    return None if permutation is None else permutation_document(permutation)


def merge_facts(
    model: str,
    made_of: Ingredients,
    combination: Combination,
    task: Merge,
    measured: Measured | None,
) -> list[tuple[str, str]]:
    """What was done, for people.

    Args:
        model: its name.
        made_of: the checkpoints, and the order of their units.
        combination: what was computed.
        task: what was merged.
        measured: losses, if they were asked for.
    """
    aligned = made_of.aligned
    names = [str(checkpoint.path) for checkpoint in made_of.checkpoints]
    only = "" if model in names else " (its own weights do not count)"
    facts = [("model", f"{model}{only}")]
    facts += [("merged", _moved(made_of, index)) for index in range(len(names))]
    if made_of.base is not None:
        facts.append(("base", _moved(made_of, len(names))))
    facts.append(("matched by", aligned.method))
    proofs = [report.equivalence for report in aligned.found if report.equivalence is not None]
    if proofs:
        worst = max(proof.max_rel for proof in proofs)
        rows = counted(min(proof.rows for proof in proofs), "row")
        facts.append(
            ("checked", f"permuted models are equivalent on {rows}: relative error {worst:.3g}")
        )
    facts.append(("combined by", combination.described()))
    if made_of.kept:
        facts.append(("from the first", f"{listed(made_of.kept, _SHOWN)}: others differ in shape"))
    mending = {"recalibrated on": task.recalibrate, "repaired on": task.repair}
    facts += [(name, source) for name, source in mending.items() if source is not None]
    facts += [] if measured is None else measured.facts()
    facts += [("note", note) for note in _notes(made_of)]
    return facts


def _moved(made_of: Ingredients, index: int) -> str:
    """A checkpoint, and what was done to its units."""
    path, permutation = made_of.everything[index].path, made_of.aligned.permutations[index]
    report = made_of.aligned.reports[index]
    if permutation is None:
        return str(path)
    moved = f"{path}: {permutation.units_moved} of {permutation.units} units moved"
    if report is None:
        return moved
    return f"{moved}, distance {report.distance_before:.6g} → {report.distance_after:.6g}"


def merge_digests(made_of: Ingredients) -> list[tuple[str, str]]:
    """The lines of a card that say which permutations were applied.

    Args:
        made_of: has them.
    """
    pairs = zip(made_of.everything, made_of.aligned.permutations, strict=True)
    return [fact for checkpoint, p in pairs for fact in digest_facts(checkpoint.path, p)]


def _notes(made_of: Ingredients) -> list[str]:
    read = [
        f"{checkpoint.path}: {note}"
        for checkpoint in made_of.everything
        for note in (*checkpoint.notes, *checkpoint.left_out)
    ]
    behind = made_of.everything[0].stays_behind
    return list(dict.fromkeys((*read, *behind, *made_of.aligned.notes)))
