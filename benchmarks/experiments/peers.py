"""Whose barrier is lowest on the trained pairs of the other experiments?"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import fxrebasin
from benchmarks.experiments import gpt, mlp_weight_decay, resnet_filter_size
from benchmarks.experiments.contestants import (
    NOTHING,
    OTHERS,
    OURS,
    PLAIN_PORT,
    REBASIN,
    Method,
    Outcome,
    Pair,
    nothing,
    plain_port,
    rebasin,
)
from benchmarks.experiments.data.find import load_images
from benchmarks.experiments.data.source import Batches, Data, Subset
from benchmarks.experiments.figures import Dots, Drawing
from benchmarks.experiments.lines import PLAIN, RECALIBRATED, REPAIRED, grouped, mean_of
from benchmarks.experiments.measure import (
    NO_BARRIER,
    example_of,
    has_batch_norm,
    permuted,
    score,
    walk,
    walk_repaired,
)
from benchmarks.experiments.report import Report, require
from benchmarks.experiments.settings import Settings, seed_of
from benchmarks.experiments.training import Subject
from benchmarks.experiments.verdicts import BEST, Chance, Row, Verdict, verdicts
from benchmarks.support.matching_environment import ensure_rebasin
from fxrebasin.colours import Meaning
from fxrebasin.merge import BarrierCurve, recalibrate

_DEFAULT = "weight"
_LEAST_DRAWN = 0.001
_TREATMENTS = (PLAIN, RECALIBRATED, REPAIRED)
_STARTS = 8


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Args:
        decays: weight decays whose pairs of MLPs are taken.
        widths: whose pairs of MLPs are taken too.
        width_decays: weight decays of those.
        kernels: filter sizes whose pairs of residual networks are taken.
        pieces: of text: to take statistics on, and held out.
        calibration: images that statistics are taken on.
        batch: of the methods that look at data.
        steps: models on a line.
        methods: of ours.
    """

    decays: tuple[float, ...]
    widths: tuple[int, ...]
    width_decays: tuple[float, ...]
    kernels: tuple[int, ...]
    pieces: tuple[int, int]
    calibration: int
    batch: int
    steps: int
    methods: tuple[str, ...]


FULL = Sizes(
    decays=(0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9),
    widths=(32, 64, 256),
    width_decays=(0.0, 0.02),
    kernels=(3, 6, 9, 12, 15),
    pieces=(128, 128),
    calibration=1024,
    batch=128,
    steps=5,
    methods=tuple(OURS),
)
QUICK = Sizes(
    decays=(0.0,),
    widths=(),
    width_decays=(),
    kernels=(),
    pieces=(64, 64),
    calibration=256,
    batch=128,
    steps=3,
    methods=("weight", "activation"),
)


def run(settings: Settings, environment: Path) -> Path:
    """Barriers of every method on the trained pairs of the other experiments.

    Args:
        settings: of the run.
        environment: folder of the environment that rebasin is installed into, once.
    """
    start = time.process_time()
    sizes = settings.pick(FULL, QUICK)
    methods = _methods(sizes, None if settings.quick else environment)
    rows: list[Row] = []
    notes: dict[tuple[str, str], list[str]] = {}
    chances: list[Chance] = []
    report = _report(settings, sizes)
    for pair in _pairs(settings, sizes):
        own: list[Row] = []
        for name, method in methods.items():
            outcome = method(pair)
            if outcome.note:
                notes.setdefault((pair.setting, name), []).append(outcome.note)
            own += _measured(pair, name, outcome, sizes)
        rows += own
        chances += _chances(pair, own, methods, sizes)
        # After every pair, as this takes long.
        report.rows("barriers", [asdict(row) for row in rows])
    if settings.quick:
        _assert_robust(rows)
    return _write(report, rows, notes, chances, time.process_time() - start)


def _methods(sizes: Sizes, cache: Path | None) -> dict[str, Method]:
    """All methods by name; without rebasin if there is no folder for its environment."""
    methods: dict[str, Method] = {NOTHING: nothing, PLAIN_PORT: plain_port}
    if cache is not None:
        try:
            methods[REBASIN] = rebasin(ensure_rebasin(cache.expanduser()))
        except subprocess.CalledProcessError as error:
            require(False, f"rebasin has to be installed beside, which failed: {error}")
    return methods | {name: OURS[name] for name in sizes.methods}


def _pairs(settings: Settings, sizes: Sizes) -> Iterator[Pair]:
    """The pairs of the other experiments, as those made them."""
    images = load_images(settings.data_dir)
    mlp = mlp_weight_decay.sizes_of(settings)
    for decay in sizes.decays:
        wanted = mlp_weight_decay.subject(images, mlp, decay)
        setting = f"mlp, weight decay {decay:g}"
        yield from _seeds(settings, setting, wanted, images, images, sizes.calibration, sizes)
    for width, decay in itertools.product(sizes.widths, sizes.width_decays):
        wanted = mlp_weight_decay.subject(images, mlp, decay, width)
        setting = f"mlp of width {width}, weight decay {decay:g}"
        yield from _seeds(settings, setting, wanted, images, images, sizes.calibration, sizes)
    resnet = resnet_filter_size.sizes_of(settings)
    for kernel in sizes.kernels:
        wanted = resnet_filter_size.subject(images, resnet, kernel)
        setting = f"resnet, {kernel} × {kernel}"
        yield from _seeds(settings, setting, wanted, images, images, sizes.calibration, sizes)
    language = gpt.sizes_of(settings)
    text = gpt.text_of(settings, language)
    wanted = gpt.subject(text, language)
    seen = _shortened(text, sizes.pieces[1])
    yield from _seeds(settings, "gpt", wanted, text, seen, sizes.pieces[0], sizes)


def _shortened(data: Data, count: int) -> Data:
    """With evenly spaced ones of its held-out items."""
    order = torch.linspace(0, len(data.test) - 1, min(count, len(data.test))).long()
    return replace(data, test=Subset(data.test, order))


def _seeds(
    settings: Settings,
    setting: str,
    subject: Subject,
    trained_on: Data,
    data: Data,
    calibration: int,
    sizes: Sizes,
) -> Iterator[Pair]:
    for seed in range(settings.seeds):
        a, b = (
            settings.store.trained(subject, trained_on.train, seed_of(seed, number))
            for number in range(2)
        )
        batch = min(sizes.batch, calibration // 4)
        batches = Batches(data.train, batch, calibration // batch)
        yield Pair(setting, seed, subject, data, a, b, batches)


def _measured(pair: Pair, name: str, outcome: Outcome, sizes: Sizes) -> list[Row]:
    if outcome.model is None:
        return []
    batch_norm = has_batch_norm(pair.b)
    # One batch of all: statistics are then exact after a few passes, however deep the network.
    whole = Batches(
        pair.calibration.source, pair.calibration.size * (pair.calibration.most or 1), 1
    )
    found = []
    for treatment in _TREATMENTS:
        if treatment == RECALIBRATED and not batch_norm:
            continue
        a, b, moved = pair.a, pair.b, outcome.model
        if treatment != PLAIN and batch_norm:
            a, b, moved = (recalibrate(model, whole) for model in (a, b, moved))
        if treatment == REPAIRED:
            curve = walk_repaired(a, moved, pair.data, steps=sizes.steps, calibration=whole)
        else:
            again = whole if treatment == RECALIBRATED else None
            curve = walk(a, moved, pair.data, steps=sizes.steps, calibration=again)
        barrier = _above(curve, score(b, pair.data.test)[0])
        loss, accuracy = curve.midpoint
        figures = (barrier, loss, accuracy or 0.0, outcome.seconds)
        found.append(Row(pair.setting, pair.seed, name, treatment, *figures))
    return found


def _chances(
    pair: Pair, rows: Sequence[Row], methods: Mapping[str, Method], sizes: Sizes
) -> list[Chance]:
    """For a pair on which another is lowest: how much of that is where it started."""
    (best,) = (v for v in verdicts(rows) if v.treatment == BEST)
    if best.outcome != "others":
        return []
    name, treatment = best.others[1].rsplit(", ", 1)
    symmetry = fxrebasin.analyze(pair.b, example_of(pair.data))
    barriers = []
    for k in range(_STARTS):
        state = symmetry.random(k).permute_state_dict(pair.b.state_dict())
        shuffled = replace(pair, b=permuted(pair.b, state))
        outcome = methods[name](shuffled)
        found = _measured(shuffled, name, outcome, sizes)
        barriers += [row.barrier for row in found if row.treatment == treatment]
    return [Chance(pair.setting, pair.seed, name, treatment, tuple(barriers), best.ours[0])]


def _above(curve: BarrierCurve, loss_b: float) -> float:
    """Largest excess over the straight line from the loss of A to that of B as trained."""
    excess = [
        loss - ((1 - t) * curve.losses[0] + t * loss_b)
        for t, loss in zip(curve.positions, curve.losses, strict=True)
    ]
    return max(0.0, *excess)


def _assert_robust(rows: Sequence[Row]) -> None:
    for setting, same in grouped(rows, lambda row: row.setting).items():
        before, after = (
            mean_of([r.barrier for r in same if (r.method, r.treatment) == (method, PLAIN)])
            for method in (NOTHING, "weight")
        )
        require(
            after < before,
            f"{setting}: the barrier falls; it went from {before:.4f} to {after:.4f}",
        )


def _report(settings: Settings, sizes: Sizes) -> Report:
    return settings.report(
        "Barriers beside rebasin and plain git-re-basin",
        f"The pairs of the other experiments, {settings.seeds} of each kind, {sizes.steps} models "
        "on a line; widths and data are those of their pages. Statistics, and the methods that "
        f"look at data, use {sizes.calibration} images to train on ({sizes.pieces[0]} pieces of "
        f"text); losses are held-out, of text on {sizes.pieces[1]} pieces",
    )


def _write(
    report: Report,
    rows: Sequence[Row],
    notes: Mapping[tuple[str, str], Sequence[str]],
    chances: Sequence[Chance],
    seconds: float,
) -> Path:
    judged = verdicts(rows)
    _say_verdicts(report, judged, rows)
    default = verdicts([row for row in rows if row.method in (*OTHERS, _DEFAULT)])
    what = f"Of our methods only `{_DEFAULT}`, the default"
    report.say(_verdict(what, [v for v in default if v.treatment == BEST]))
    for chance in chances:
        report.say(str(chance))
    starts = [
        {**asdict(chance), "barriers": barrier, "start": k}
        for chance in chances
        for k, barrier in enumerate(chance.barriers)
    ]
    if starts:
        report.rows("starts", starts)
    report.say("" if any(r.method == REBASIN for r in rows) else "rebasin was not run.")
    _say_notes(report, notes)
    summary_table(report, rows)
    report.picture("barriers", drawing_of(rows), "Barrier by method and kind of network")
    report.rows(
        "verdicts",
        [
            {
                "setting": v.setting,
                "seed": v.seed,
                "treatment": v.treatment,
                "ours": v.ours[0],
                "our_method": v.ours[1],
                "others": v.others[0],
                "other_method": v.others[1],
                "lowest": v.outcome,
            }
            for v in judged
        ],
    )
    return report.write(seconds)


def _say_verdicts(report: Report, judged: Sequence[Verdict], rows: Sequence[Row]) -> None:
    for treatment, same in grouped(judged, lambda v: v.treatment).items():
        if treatment == BEST:
            report.say(_verdict("Each side's best method and treatment", same))
            continue
        lost = {(v.setting, v.seed) for v in same if v.outcome == "others"}
        left = [r.barrier for r in rows if r.treatment == treatment and (r.setting, r.seed) in lost]
        text = _verdict(treatment, same)
        if left:
            which = "that" if len(lost) == 1 else "those"
            text += f" On {which}, all methods, and none at all, leave {min(left):.3f} to "
            text += f"{max(left):.3f} nats."
        report.say(text)


def _verdict(what: str, judged: Sequence[Verdict]) -> str:
    """Who is lowest how often, and on which pairs another is."""
    by_outcome = grouped(judged, lambda v: v.outcome)
    ours, zero, lost = (by_outcome.get(name, []) for name in ("ours", "zero for both", "others"))
    names = "; ".join(f"{v.setting}, pair {v.seed}" for v in lost)
    return (
        f"**{what}**: of {len(judged)} pairs, the lowest barrier is ours on {len(ours)}, below "
        f"{NO_BARRIER} nats for both on {len(zero)}, and another's on "
        f"{len(lost)}{': ' + names if lost else ''}."
    )


def _say_notes(report: Report, notes: Mapping[tuple[str, str], Sequence[str]]) -> None:
    for (setting, method), found in notes.items():
        report.say(f"{method} on {setting}: {'; '.join(dict.fromkeys(found))}.")


def summary_table(report: Report, rows: Sequence[Row]) -> None:
    """Mean barriers with the treatment that leaves the lowest, one line per kind of network.

    Args:
        report: that gets it.
        rows: of all pairs.
    """
    lines = []
    for setting, of_setting in grouped(rows, lambda row: row.setting).items():
        last = of_setting[-1].treatment
        means = {
            method: mean_of([row.barrier for row in same if row.treatment == last])
            for method, same in grouped(of_setting, lambda row: row.method).items()
        }
        ours = {method: value for method, value in means.items() if method not in OTHERS}
        best = min(ours, key=ours.__getitem__)
        shown = [f"{means[m]:.3f}" if m in means else "–" for m in (*OTHERS, _DEFAULT)]
        lines.append([f"{setting}, {last}", *shown, f"{ours[best]:.3f} ({best})"])
    report.say("Mean barriers in nats, above the straight line between the losses of A and B.")
    report.table(["networks, models", *OTHERS, f"`{_DEFAULT}`", "the best of ours"], lines)


def drawing_of(rows: Sequence[Row]) -> Drawing:
    """A panel for each treatment, a row for each kind of network, a dot for each method.

    Args:
        rows: of all pairs.
    """
    methods = dict.fromkeys(row.method for row in rows)
    meanings = {
        **dict.fromkeys(methods, Meaning.REBASED),
        **{NOTHING: Meaning.UNTOUCHED, PLAIN_PORT: Meaning.PEER, REBASIN: Meaning.PEER},
    }
    settings = dict.fromkeys(row.setting for row in rows)
    order = [*(m for m in OTHERS if m in methods), *(m for m in methods if m not in OTHERS)]
    panels = [
        Dots(
            treatment,
            "barrier (nats)",
            {
                setting: {
                    method: [max(row.barrier, _LEAST_DRAWN) for row in found]
                    for method, found in grouped(of_setting, lambda row: row.method).items()
                }
                for setting in settings
                for of_setting in [[row for row in same if row.setting == setting]]
            },
            {method: meanings[method] for method in order},
        )
        for treatment, same in grouped(
            sorted(rows, key=lambda row: _TREATMENTS.index(row.treatment)),
            lambda row: row.treatment,
        ).items()
    ]
    title = f"Barrier by kind of network and method, means and ranges (at least {_LEAST_DRAWN})"
    return Drawing(panels, len(panels), title)
