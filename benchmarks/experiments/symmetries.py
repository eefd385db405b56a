"""How low do barriers get when more than the order of units may change?"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import fxrebasin
from benchmarks.experiments.contestants import (
    PLAIN_PORT,
    REBASIN,
    Method,
    Outcome,
    Pair,
    plain_port,
    rebasin,
)
from benchmarks.experiments.data.source import Batches
from benchmarks.experiments.figures import Dots, Drawing
from benchmarks.experiments.lines import grouped, mean_of
from benchmarks.experiments.measure import example_of, permuted, walk
from benchmarks.experiments.report import Report, require
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.symmetries_of_many import joint_rows
from benchmarks.experiments.symmetry_rows import UNTOUCHED, Kept, Row
from benchmarks.experiments.symmetry_subjects import Study, Trained, studies
from benchmarks.experiments.training import loss_of
from benchmarks.support.matching_environment import ensure_rebasin
from benchmarks.support.methods_table import spread
from fxrebasin.colours import Meaning
from fxrebasin.errors import InputError

_OTHER_TOOLS, _LARGEST = "other tools", "largest group"
_MARKS = {_LARGEST: "(all)", "signs and permutations": "(signed)", "permutations": "(permutation)"}
_MEANINGS: dict[str, Meaning | None] = {
    UNTOUCHED: Meaning.UNTOUCHED,
    _OTHER_TOOLS: Meaning.PEER,
    **dict.fromkeys(_MARKS, Meaning.REBASED),
}
_SAME = 1e-10
_LEAST_DRAWN = 1e-3
_STEPS = 11
_NETWORKS = 3
_SEEN = 512  # items that methods which look at data see, but for those that learn


@dataclass(frozen=True)
class Way:
    """How B is aligned with A.

    Args:
        method: of `fxrebasin.transform`.
        symmetry: what may change.
        steps: of a method that learns.
    """

    method: str
    symmetry: str = "permutation"
    steps: int = 0

    @property
    def name(self) -> str:
        """As tables call it."""
        steps = f", {self.steps} steps" if self.steps else ""
        return f"{self.method}{steps} ({self.symmetry})"


def run(
    settings: Settings,
    environment: Path,
    networks: str | None,
    keep: Path | None,
    only_kept: bool,
) -> Path:
    """Barriers with permutations, signs and all symmetries, side by side.

    Args:
        settings: of the run.
        environment: folder of the environment that rebasin is installed into, once.
        networks: names with commas; all when left out.
        keep: folder where rows are kept, from which a run that was stopped goes on.
        only_kept: leave out what is not kept there.
    """
    known = studies(settings)
    chosen = [name.strip() for name in networks.split(",")] if networks else list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise InputError(f"no network {unknown[0]!r}; there are: {', '.join(known)}")
    others = _others(None if settings.quick else environment)
    kept = Kept(keep, only_kept)
    rows: list[Row] = []
    for name in chosen:
        trained = Trained(settings.store, known[name])
        for seeds in _pairs(settings):
            rows += _rows((name, seeds), trained, others, settings, kept)
        if known[name].has_matrices and settings.seeds != 1:
            rows += joint_rows(name, trained, settings.pick((300, 1000), (30,)), _SEEN, kept)
    _check(rows, settings)
    return _write(settings, rows)


def ways(study: Study, settings: Settings) -> tuple[Way, ...]:
    """All of ours, for a network.

    Args:
        study: of the network.
        settings: of the run.
    """
    steps = settings.pick((300, 1000), (30,))
    found = [Way(method) for method in ("weight", "activation")]
    found += [Way(method, "signed") for method in ("weight", "activation") if study.has_signs]
    found += [Way(method, "all") for method in ("weight", "activation")]
    found += [Way("learned", "all", count) for count in steps if study.has_matrices]
    if not settings.quick:
        found += [Way("straight_through"), Way("learned", steps=300)]
    return tuple(found)


def _pairs(settings: Settings) -> list[tuple[int, int]]:
    """The seeds of all pairs."""
    return list(itertools.combinations(range(_NETWORKS), 2))[: settings.seeds]


def _others(cache: Path | None) -> dict[str, Method]:
    """Methods that are not ours; without rebasin if there is no folder for its environment."""
    found: dict[str, Method] = {PLAIN_PORT: plain_port}
    if cache is not None:
        try:
            found[REBASIN] = rebasin(ensure_rebasin(cache.expanduser()))
        except subprocess.CalledProcessError:
            missing = Outcome(None, note="could not be installed beside, and was not run")
            found[REBASIN] = lambda pair: missing
    return found


def _rows(
    which: tuple[str, tuple[int, int]],
    trained: Trained,
    others: Mapping[str, Method],
    settings: Settings,
    kept: Kept,
) -> Iterator[Row]:
    """All ways for one pair; networks are trained when a way first needs them."""
    network, (one, two) = which
    study = trained.study

    @cache
    def pair() -> Pair:
        seen = Batches(trained.data.train, study.batch, _SEEN // study.batch)
        models = trained.model(one), trained.model(two)
        return Pair(network, 0, study.subject, trained.data, *models, seen)

    def make(names: tuple[str, str, str]) -> Row:
        outcome, error = _aligned(pair(), study, names[2], others, settings)
        return _row(names, pair(), outcome, error)

    for way in (UNTOUCHED, *others, *(way.name for way in ways(study, settings))):
        names = network, f"{one}-{two}", way
        row = kept.row(names, partial(make, names))
        if row is not None:
            yield row


def _aligned(
    pair: Pair, study: Study, name: str, others: Mapping[str, Method], settings: Settings
) -> tuple[Outcome, float]:
    """What is made of B, and how far that is from B in float64."""
    if name == UNTOUCHED:
        return Outcome(pair.b), 0.0
    if name in others:
        return others[name](pair), -1.0
    way = next(way for way in ways(study, settings) if way.name == name)
    start = time.process_time()
    found = fxrebasin.transform(
        pair.b,
        ref=pair.a,
        example_inputs=example_of(pair.data),
        symmetry=way.symmetry,
        method=way.method,
        **_options(way, pair, study),
    )
    seconds = time.process_time() - start
    model = permuted(pair.b, found.state_dict())
    return Outcome(model, seconds), float(found.meta["fxrebasin"].equivalence.max_rel)


def _options(way: Way, pair: Pair, study: Study) -> dict[str, Any]:
    if way.method == "weight":
        return {}
    if not way.steps and way.method == "activation":
        return {"loader": pair.calibration}
    steps = way.steps or 100
    loader = study.batches(pair.data.train, steps + 8)
    if way.method == "straight_through":
        return {"loader": loader, "loss": loss_of, "epochs": 3}
    return {"loader": loader, "loss": loss_of, "steps": steps, "rate": study.rate}


def _row(names: tuple[str, str, str], pair: Pair, outcome: Outcome, error: float) -> Row:
    if outcome.model is None:
        return Row(*names, -1.0, -1.0, -1.0, outcome.seconds, error, outcome.note)
    curve = walk(pair.a, outcome.model, pair.data, steps=_STEPS)
    loss, accuracy = curve.midpoint
    figures = (curve.barrier, loss, accuracy or 0.0, outcome.seconds)
    return Row(*names, *figures, error, outcome.note)


def _check(rows: Sequence[Row], settings: Settings) -> None:
    """Stop if a model was changed, or what is robust does not hold."""
    worst = max(row.error for row in rows)
    require(worst <= _SAME, f"aligned models compute what they computed; one is {worst:.1e} off")
    if not settings.quick:
        return
    for network, same in grouped(rows, lambda row: row.network).items():
        before = mean_of([row.barrier for row in same if row.way == UNTOUCHED])
        least = min(row.barrier for row in same if row.way.endswith("(all)"))
        require(
            least < before,
            f"{network}: the barrier falls; it went from {before:.4f} to {least:.4f}",
        )


def _write(settings: Settings, rows: Sequence[Row]) -> Path:
    report = settings.report(
        "Symmetries beyond permutation",
        "Images are scikit-learn's digits, text is the source text of Python's standard library, "
        "as bytes. Every pair of networks trained from different seeds counts",
    )
    _say(report, rows, settings)
    networks = grouped([row for row in rows if not row.is_joint], lambda row: row.network)
    for network, same in networks.items():
        report.head(network)
        report.table(
            ["B is", "pairs", "barrier", "loss midway", "accuracy midway", "seconds", "error"],
            [_line(way, of_way) for way, of_way in grouped(same, lambda r: r.way).items()],
        )
        report.say(*_notes(same))
    joint = [row for row in rows if row.is_joint]
    if joint:
        report.head("Three networks in one basis")
        report.say(
            "The barrier of the mean is its loss above the mean of the three losses; those of the "
            "lines between two of the aligned networks stand beside it."
        )
        report.table(
            ["network", "aligned by", "barrier", "lines", "loss", "accuracy", "seconds"],
            [_joint_line(row) for row in joint],
        )
    report.picture("barriers", drawing_of(rows, report.title), "Barriers of all pairs")
    report.rows("barriers", [asdict(row) for row in rows])
    return report.write(sum(row.seconds for row in rows))


def drawing_of(rows: Sequence[Row], title: str) -> Drawing:
    """A panel for each network, a row for each way that was run on it.

    Args:
        rows: of all pairs; those of more networks are left out.
        title: of the picture.
    """
    rows = [row for row in rows if not row.is_joint]
    panels = [
        Dots(
            network,
            "barrier (nats)",
            {
                way: {_kind_of(way): [max(r.barrier, _LEAST_DRAWN) for r in of_way]}
                for way, of_way in grouped(
                    (row for row in same if row.barrier >= 0), lambda r: r.way
                ).items()
            },
            _MEANINGS,
        )
        for network, same in grouped(rows, lambda row: row.network).items()
    ]
    return Drawing(panels, min(len(panels), 2), title)


def _kind_of(way: str) -> str:
    """Under which label of the picture a way is."""
    if way == UNTOUCHED:
        return UNTOUCHED
    return next((label for label, mark in _MARKS.items() if way.endswith(mark)), _OTHER_TOOLS)


def _say(report: Report, rows: Sequence[Row], settings: Settings) -> None:
    """What the lowest barriers are, and what they were."""
    report.say(
        "B is aligned with A by permutations of units, by signs and permutations, or by the "
        "largest group that leaves its function as it is. The largest relative error of an "
        f"aligned model against B, in float64, is {max(row.error for row in rows):.1e}. Barriers "
        f"are means over pairs on {_STEPS} points of the straight line, in nats, on held-out data."
    )
    said, missing = [], []
    for network, same in grouped([r for r in rows if not r.is_joint], lambda r: r.network).items():
        found = {
            way: mean_of([row.barrier for row in of_way])
            for way, of_way in grouped(same, lambda r: r.way).items()
            if all(row.barrier >= 0 for row in of_way)
        }
        exact = {row.way for row in same if row.error >= 0}  # others may have changed the function
        best = min((way for way in found if way in exact), key=found.__getitem__)
        plain = {way: value for way, value in found.items() if way.endswith("(permutation)")}
        least = min(plain, key=plain.__getitem__, default=None)
        between = f"{plain[least]:.3f} with {least}, " if least else ""
        said.append(
            f"{network}: {found[UNTOUCHED]:.3f} untouched, {between}and "
            f"{found[best]:.3f} with {best}."
        )
        missing += _missing(network, same, settings)
    report.say(*said)
    report.say(*missing)


def _missing(network: str, rows: Sequence[Row], settings: Settings) -> list[str]:
    """Ways that were taken on fewer pairs than there are, or on none."""
    asked = (UNTOUCHED, *(way.name for way in ways(studies(settings)[network], settings)))
    counts = {name: sum(row.way == name for row in rows) for name in asked}
    few = [f"{name} ({counts[name]})" for name in asked if counts[name] < len(_pairs(settings))]
    if not few:
        return []
    return [f"Not run on all {len(_pairs(settings))} pairs of {network}: {', '.join(few)}."]


def _line(way: str, rows: Sequence[Row]) -> list[str]:
    done = [row for row in rows if row.barrier >= 0]
    if not done:
        return [way, *(["–"] * 6)]
    errors = [row.error for row in done]
    return [
        way,
        str(len(done)),
        spread([row.barrier for row in done], ".3f"),
        spread([row.midpoint_loss for row in done], ".3f"),
        spread([row.midpoint_accuracy for row in done], ".3f"),
        f"{mean_of([row.seconds for row in done]):.1f}",
        f"{max(errors):.0e}" if min(errors) >= 0 else "–",
    ]


def _joint_line(row: Row) -> list[str]:
    figures = (row.midpoint_loss, row.midpoint_accuracy)
    shown = [f"{value:.3f}" for value in figures]
    return [row.network, row.way, f"{row.barrier:.3f}", row.note, *shown, f"{row.seconds:.1f}"]


def _notes(rows: Sequence[Row]) -> list[str]:
    """Why ways could not be taken, each once."""
    return [
        f"{way}: {note}." for way, note in dict.fromkeys((r.way, r.note) for r in rows if r.note)
    ]
