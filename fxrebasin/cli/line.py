"""What happens on the line between two checkpoints: models are written there, or measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fxrebasin
from fxrebasin.cli.aligning import align, default_method
from fxrebasin.cli.documents import (
    card,
    checkpoint_document,
    command_document,
    digest_facts,
    matching_document,
)
from fxrebasin.cli.ingredients import Ingredients
from fxrebasin.cli.measuring import Measured, between
from fxrebasin.cli.options import HowToMatch, HowToRead, Inputs, Limits, Talk, Target
from fxrebasin.cli.plans import show_plan
from fxrebasin.cli.talking import say, show
from fxrebasin.cli.units import check_units_picture, draw_units
from fxrebasin.cli.user_objects import batches, function
from fxrebasin.cli.work import (
    open_bench,
    read_for,
    refuse_outputs,
    refuse_targets,
    split_models,
    write_weights,
)
from fxrebasin.errors import InputError
from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.combinations import Combination
from fxrebasin.merge.states import own_state
from fxrebasin.show.views import report_facts
from fxrebasin.storage.files import together

_PLACE = "{t}"
_OTHER_PLACE = re.compile(r"\{\w*\}")

How = tuple[HowToMatch, HowToRead, Inputs]


def read_positions(texts: Sequence[str], target: Target) -> dict[float, Path]:
    """Positions, and where the model at each goes.

    Args:
        texts: numbers.
        target: whose name has a place for the position, if there are several.

    Raises:
        InputError: a text is no number from 0 to 1, or the name has no such place, or others.
    """
    try:
        numbers = [float(text) for text in texts]
    except ValueError as error:
        raise InputError(
            f"--t {','.join(texts)} are not numbers; write such as 0.25,0.5"
        ) from error
    if not all(0 <= number <= 1 for number in numbers):
        raise InputError(f"--t {','.join(texts)}: positions go from 0, which is A, to 1, B")
    if len(numbers) > 1 and _PLACE not in str(target.out):
        raise InputError(
            f"--out {target.out} is one name for {len(numbers)} models; write {_PLACE} where the "
            "position belongs, such as between-{t}.safetensors"
        )
    if other := _OTHER_PLACE.search(target.out.name.replace(_PLACE, "")):
        raise InputError(
            f"--out {target.out}: {other.group()} stands for nothing; write {_PLACE} where the "
            "position belongs"
        )
    short = {number: f"{number:g}" for number in numbers}
    alike = len(set(short.values())) < len(short)
    shown = {number: repr(number) if alike else text for number, text in short.items()}
    return {n: Path(str(target.out).replace(_PLACE, shown[n])) for n in numbers}


def run_interpolate(
    arguments: Sequence[str],
    places: dict[float, Path],
    options: tuple[str | None, Path | None],
    target: Target,
    how: How,
    limits: Limits,
    talk: Talk,
) -> None:
    """Write models between two checkpoints.

    Args:
        arguments: MODEL and checkpoints.
        places: where the model at each position goes.
        options: source of data for BatchNorm statistics, and a picture of the units.
        target: dtype, and whether files are replaced.
        how: units are matched, checkpoints read, and the model run.
        limits: of memory.
        talk: what is printed.
    """
    from fxrebasin.cli.large import Result, room_for
    from fxrebasin.cli.large_merge import interpolate_large

    recalibrate, picture = options
    check_units_picture(picture, how[0])
    targets = {t: Target(path, target.dtype, target.overwrite) for t, path in places.items()}
    model, paths = split_models(arguments)
    refuse_targets(list(targets.values()), picture, inputs=read_for(model, *paths))
    if len(paths) == 2:
        results = [Result(item, 0, False) for item in targets.values()]
        needing = {"--recalibrate": recalibrate, "--picture": picture}
        room = room_for(model, paths, how, limits, needing, results)
        if room is not None:
            interpolate_large(room, targets, how, limits, talk)
            return
    made_of = _between_two(arguments, how, talk, "interpolate", target.out)
    if made_of is None:
        return
    bench, first = made_of.bench, made_of.checkpoints[0]
    files: list[Path] = []
    facts = line_facts(made_of)
    digest = digest_facts(made_of.checkpoints[1].path, made_of.aligned.permutations[1])
    pair, certificate = made_of.checkpoints[:2], made_of.aligned.permutations[1]
    with together():
        for t, item in targets.items():
            state = made_of.combined(Combination(weights=ByPattern((1 - t, t))))
            if recalibrate is not None:
                bench.module.load_state_dict(state, strict=False)
                loader = batches(recalibrate, "--recalibrate", bench)
                mended = own_state(fxrebasin.recalibrate(bench.module, loader))
                state = {name: mended[name].to(tensor.dtype) for name, tensor in state.items()}
            text = card(item.out.stem, [("position", f"{t:g}"), *facts, *digest], ["merge"])
            files += write_weights(item, first, state, text)
        drawn = draw_units(picture, (pair[0], pair[1]), certificate, overwrite=target.overwrite)
        files += drawn
    document = line_document("interpolate", made_of) | {
        "positions": list(targets),
        "recalibrate": recalibrate,
        "files": [str(file) for file in files],
    }
    show(talk, facts, document)
    for t, item in targets.items():
        say(talk, f"wrote {item.out} (t = {t:g})")
    for file in drawn:
        say(talk, f"wrote {file}")


def run_barrier(
    arguments: Sequence[str],
    measuring: tuple[str, int, str | None],
    drawing: tuple[Path | None, bool],
    how: How,
    talk: Talk,
) -> None:
    """Measure the barrier between two checkpoints.

    Args:
        arguments: MODEL and checkpoints.
        measuring: name of a function from a model to its loss, number of models, and source of
            data for BatchNorm statistics.
        drawing: a picture, and whether it may be replaced.
        how: units are matched, checkpoints read, and the model run.
        talk: what is printed.
    """
    name, steps, recalibrate = measuring
    picture, overwrite = drawing
    if picture is not None:
        model, paths = split_models(arguments)
        refuse_outputs([picture], inputs=read_for(model, *paths), overwrite=overwrite)
    made_of = _between_two(arguments, how, talk, "barrier", picture)
    if made_of is None:
        return
    prepare = None
    if recalibrate is not None:
        loader = batches(recalibrate, "--recalibrate", made_of.bench)
        prepare = partial(fxrebasin.recalibrate, loader=loader)
    curves = between(made_of, function(name, "--evaluate"), steps, prepare)
    measured = Measured({}, curves)
    files = [] if picture is None else [measured.draw(picture, overwrite)]
    document = line_document("barrier", made_of) | {
        "evaluation": measured.document(),
        "files": [str(file) for file in files],
    }
    rows = [(f"loss at {t:g}", _losses(curves, k)) for k, t in enumerate(curves[0].positions)]
    show(talk, [*line_facts(made_of), *rows, *measured.facts()], document)
    for file in files:
        say(talk, f"wrote {file}")


def _losses(curves: Sequence[fxrebasin.BarrierCurve], index: int) -> str:
    return " → ".join(f"{curve.losses[index]:.6g}" for curve in curves)


def _between_two(
    arguments: Sequence[str], how: How, talk: Talk, command: str, out: Path | None
) -> Ingredients | None:
    """Two checkpoints, the second brought into the order of the first; None in a dry run."""
    matching, reading, inputs = how
    model, paths = split_models(arguments)
    if len(paths) != 2:
        raise InputError(f"{command} is for two checkpoints; there are {len(paths)}")
    bench = open_bench(model, inputs, reading)
    if talk.dry_run:
        show_plan(bench, paths, inputs, talk, command, out)
        return None
    checkpoints = tuple(bench.read(path) for path in paths)
    method = matching.method or default_method(2)
    return Ingredients(
        bench, checkpoints, None, align(bench, checkpoints, method, matching, inputs)
    )


def line_facts(made_of: Ingredients) -> list[tuple[str, str]]:
    """What was read and matched, for people.

    Args:
        made_of: both checkpoints.
    """
    a, b = made_of.checkpoints
    notes = [*a.notes, *b.notes, *a.left_out, *a.stays_behind]
    facts = [("from", str(a.path)), ("to", str(b.path))]
    for report in made_of.aligned.found:
        return facts + report_facts(report, notes)
    return [*facts, ("method", made_of.aligned.method), *(("note", note) for note in notes)]


def line_document(command: str, made_of: Ingredients) -> dict[str, Any]:
    """The same for programs.

    Args:
        command: its name.
        made_of: both checkpoints.
    """
    found = made_of.aligned.found
    return {
        **command_document(command),
        "model": made_of.bench.name,
        "checkpoints": [checkpoint_document(checkpoint) for checkpoint in made_of.checkpoints],
        "alignment": matching_document(found[0]) if found else None,
    }
