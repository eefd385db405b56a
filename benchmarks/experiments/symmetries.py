"""How low do barriers get when more than the order of units may change?"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from benchmarks.experiments.symmetry_subjects import Study, studies
from benchmarks.experiments.training import loss_of
from benchmarks.support.matching_environment import ensure_rebasin
from benchmarks.support.methods_table import spread
from fxrebasin.colours import Meaning
from fxrebasin.errors import InputError
from fxrebasin.storage.files import publish

UNTOUCHED = "untouched"
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


@dataclass(frozen=True)
class Row:
    """What one way of aligning makes of one pair.

    Args:
        network: in words.
        pair: the two seeds.
        way: of aligning.
        barrier: held-out, in nats.
        midpoint_loss: held-out, in nats.
        midpoint_accuracy: 0 to 1.
        seconds: of the processor, for aligning and its proof.
        error: relative, in float64, of the aligned model against B; -1 where that was not measured.
        note: of the way.
    """

    network: str
    pair: str
    way: str
    barrier: float
    midpoint_loss: float
    midpoint_accuracy: float
    seconds: float
    error: float = -1.0
    note: str = ""


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
    rows: list[Row] = []
    for name in chosen:
        for pair, study in _pairs(settings, name, known[name]):
            rows += list(_rows(pair, study, others, settings, (keep, only_kept)))
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


def _pairs(settings: Settings, name: str, study: Study) -> Iterator[tuple[Pair, Study]]:
    """All pairs of the seeds of a network."""
    data = study.data()
    count = 2 if settings.seeds == 1 else 3
    models = [settings.store.trained(study.subject, data.train, seed) for seed in range(count)]
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)][: settings.seeds]
    for a, b in pairs:
        seen = Batches(data.train, study.batch, _SEEN // study.batch)
        yield Pair(f"{name}|{a}-{b}", 0, study.subject, data, models[a], models[b], seen), study


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
    pair: Pair,
    study: Study,
    others: Mapping[str, Method],
    settings: Settings,
    kept: tuple[Path | None, bool],
) -> Iterator[Row]:
    keep, only_kept = kept
    network, seeds = pair.setting.split("|")
    for name in (UNTOUCHED, *others, *(way.name for way in ways(study, settings))):
        path = None if keep is None else keep / f"{network}-{seeds}-{name}.json".replace(" ", "_")
        if path is not None and path.is_file():
            yield Row(**json.loads(path.read_text()))
            continue
        if only_kept:
            continue
        outcome, error = _aligned(pair, study, name, others, settings)
        row = _row((network, seeds, name), pair, outcome, error)
        if path is not None:
            publish(path, json.dumps(asdict(row)).encode(), overwrite=True)
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
    _say(report, rows)
    networks = grouped(rows, lambda row: row.network)
    for network, same in networks.items():
        report.head(network)
        report.table(
            ["B is", "barrier", "loss midway", "accuracy midway", "seconds", "error, float64"],
            [_line(way, of_way) for way, of_way in grouped(same, lambda r: r.way).items()],
        )
        report.say(*_notes(same))
    report.picture("barriers", drawing_of(rows, report.title), "Barriers of all pairs")
    report.rows("barriers", [asdict(row) for row in rows])
    return report.write(sum(row.seconds for row in rows))


def drawing_of(rows: Sequence[Row], title: str) -> Drawing:
    """A panel for each network, a row for each way that was run on it.

    Args:
        rows: of all pairs.
        title: of the picture.
    """
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


def _say(report: Report, rows: Sequence[Row]) -> None:
    """What the lowest barriers are, and what they were."""
    report.say(
        "B is aligned with A by permutations of units, by signs and permutations, or by the "
        "largest group that leaves its function as it is. The largest relative error of an "
        f"aligned model against B, in float64, is {max(row.error for row in rows):.1e}. Barriers "
        f"are means over pairs on {_STEPS} points of the straight line, in nats, on held-out data."
    )
    for network, same in grouped(rows, lambda row: row.network).items():
        found = {
            way: mean_of([row.barrier for row in of_way])
            for way, of_way in grouped(same, lambda r: r.way).items()
            if all(row.barrier >= 0 for row in of_way)
        }
        best = min(found, key=found.__getitem__)
        plain = {way: value for way, value in found.items() if way.endswith("(permutation)")}
        least = min(plain, key=plain.__getitem__)
        report.say(
            f"{network}: {found[UNTOUCHED]:.3f} untouched, {plain[least]:.3f} with {least}, and "
            f"{found[best]:.3f} with {best}."
        )


def _line(way: str, rows: Sequence[Row]) -> list[str]:
    done = [row for row in rows if row.barrier >= 0]
    if not done:
        return [way, *(["–"] * 5)]
    errors = [row.error for row in done]
    return [
        way,
        spread([row.barrier for row in done], ".3f"),
        spread([row.midpoint_loss for row in done], ".3f"),
        spread([row.midpoint_accuracy for row in done], ".3f"),
        f"{mean_of([row.seconds for row in done]):.1f}",
        f"{max(errors):.0e}" if min(errors) >= 0 else "–",
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    """Why ways could not be taken, each once."""
    return [
        f"{way}: {note}." for way, note in dict.fromkeys((r.way, r.note) for r in rows if r.note)
    ]
