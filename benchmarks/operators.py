"""Which ATen operators do models consist of, and what does the analysis know of each?

    python -m benchmarks.operators

Writes `docs/operators.md` and, with a row for each operator, `docs/operators.csv`.
Models of torchvision and timm have their parameters on the meta device.
"""

from __future__ import annotations

import csv
import gc
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch._ops import OpOverload

from benchmarks.support.meta import parameters_on_meta
from benchmarks.support.timm_models import SMALLEST, image_size
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.passes.propagate.propagate import propagate
from fxrebasin.passes.propagate.tracks import RESHAPING
from fxrebasin.passes.rules.registry import BLOCKED, RULES
from fxrebasin.running.collector import collector_paused
from fxrebasin.storage.files import publish
from fxrebasin.terminal import progress_bar
from tests.support.vision_operators import without_compiled_operators

PAGE = Path("docs/operators.md")
TABLE = Path("docs/operators.csv")
_MOST_CALLED = 4

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Subject = tuple[str, Callable[[], Call]]


@click.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PAGE,
    show_default=True,
    help="The page; an earlier one is replaced.",
)
def main(out: Path) -> None:
    """Write the page of operators."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = list(subjects())
    with progress_bar() as progress:
        task = progress.add_task("operators", total=len(found))

        def advancing() -> Iterator[Subject]:
            for subject in found:
                progress.update(task, description=subject[0])
                yield subject
                progress.advance(task)

        with without_compiled_operators():
            counts = count(advancing())
    publish(out, page(counts, len(found)).encode(), overwrite=True)
    publish(out.with_suffix(".csv"), table(counts).encode(), overwrite=True)


def subjects() -> Iterator[Subject]:
    """The models, each with what builds it."""
    ensure_torchvision()
    from torchvision import models

    for name in models.list_models(module=models):
        yield f"torchvision:{name}", partial(_classifier, name)
    for name, _ in SMALLEST.values():
        yield f"timm:{name}", partial(_timm, name)
    yield from small_models()
    yield from tasks()


def small_models() -> Iterator[Subject]:
    """Small configurations of transformers' and diffusers' models."""
    ensure_torchvision()
    from tests.support.diffusion_models import DIFFUSION
    from tests.support.text_models import TEXT
    from tests.support.vision_models import VISION

    for name, build in {**TEXT, **VISION}.items():
        for attention in ("eager", "sdpa"):
            yield f"transformers:{name} ({attention})", partial(_with_attention, build, attention)
    for name, make in DIFFUSION.items():
        yield f"diffusers:{name}", partial(_by_name, make)


def tasks() -> Iterator[Subject]:
    """torchvision's models of segmentation, video, optical flow and detection."""
    from tests.support.task_models import MODELS

    for name, make in MODELS.items():
        yield f"torchvision:{name}", partial(_task, make)


def _classifier(name: str) -> Call:
    from torchvision import models

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with parameters_on_meta():
        model = models.get_model(name, **options)
    large = name.startswith(("vit_", "maxvit", "inception"))
    size = 224 if large else 64
    return model, (torch.empty(2, 3, size, size, device="meta"),), {}


def _timm(name: str) -> Call:
    import timm

    try:
        with parameters_on_meta():
            model = timm.create_model(name, pretrained=False)
    except (NotImplementedError, RuntimeError):  # it computes with parameters as it is built
        model = timm.create_model(name, pretrained=False)
    return model, (torch.empty(2, *image_size(model), device="meta"),), {}


def _with_attention(build: Callable[[str], tuple[nn.Module, Any]], attention: str) -> Call:
    try:
        model, inputs = build(attention)
    except ValueError:  # it has no fused attention
        model, inputs = build("eager")
    return model, (), inputs


def _by_name(make: Callable[[], tuple[nn.Module, Any]]) -> Call:
    model, inputs = make()
    return model, (), inputs


def _task(make: Callable[[], tuple[nn.Module, tuple[Any, ...]]]) -> Call:
    model, inputs = make()
    return model, inputs, {}


def count(models: Iterable[Subject]) -> Counter[str]:
    """For each operator, how many of the models call it on what depends on weights or inputs."""
    counts: Counter[str] = Counter()
    for _, build in models:
        model, args, kwargs = build()
        with collector_paused():
            counts.update(set(propagate(model.eval(), args, kwargs).operators))
        del model, args, kwargs
        gc.collect()
    return counts


def overload(name: str) -> OpOverload:
    """The operator of a name such as `aten.add.Tensor`."""
    namespace, packet, rest = name.split(".", 2)
    found = getattr(getattr(getattr(torch.ops, namespace), packet), rest)
    if not isinstance(found, OpOverload):
        raise TypeError(f"{name} is not an overload")
    return found


def what_is_known(name: str) -> str:
    """The file of the rule, or why there is none."""
    operator = RESHAPING.get(overload(name), overload(name))
    if operator in BLOCKED:
        return f"blocked: {BLOCKED[operator]}"
    if operator not in RULES:
        tensors = any("Tensor" in str(result.type) for result in operator._schema.returns)
        return "unknown" if tensors else "gives no tensor, only a number"
    return f"`{RULES[operator].__module__.rpartition('.')[2]}.py`"


def table(counts: Counter[str]) -> str:
    """A row for each operator, as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["operator", "known", "models"])
    writer.writerows([name, what_is_known(name), counts[name]] for name in sorted(counts))
    return buffer.getvalue()


def read_table(text: str) -> tuple[dict[str, str], Counter[str]]:
    """What is said of each operator in a table, and how many models call it."""
    rows = list(csv.DictReader(io.StringIO(text)))
    said = {row["operator"]: row["known"] for row in rows}
    return said, Counter({row["operator"]: int(row["models"]) for row in rows})


def _families(ruled: dict[str, str], counts: Counter[str]) -> Iterator[str]:
    """A line for each file of rules, those first that models call most."""
    families: dict[str, list[str]] = {}
    for name, file in ruled.items():
        families.setdefault(file, []).append(name)
    most = {file: sorted(names, key=lambda n: -counts[n]) for file, names in families.items()}
    for file, names in sorted(most.items(), key=lambda item: -counts[item[1][0]]):
        shown = ", ".join(f"`{name}`" for name in names[:_MOST_CALLED])
        yield f"| {file} | {len(names)} | {shown} |"


def page(counts: Counter[str], models: int) -> str:
    """The page, as Markdown."""
    ruled = {name: known for name in sorted(counts) if (known := what_is_known(name))[0] == "`"}
    lines = [
        "# Operators",
        "",
        f"Every ATen operator that {models} models call on something that depends on their weights",
        "or inputs: torchvision's classifiers, the smallest model of each of timm's modules, small",
        "configurations of transformers and diffusers, and torchvision's models of segmentation,",
        "video, optical flow and detection. Operators that PyTorch decomposes are counted as what",
        "they decompose to. The rules are in `passes/rules/`; they cover more than is listed here.",
        "",
        "Written by `python -m benchmarks.operators`.",
        "",
        f"## With a rule ({len(ruled)})",
        "",
        "[operators.csv](operators.csv) has each of them, with the number of models that call it.",
        "",
        "| rules | operators | most called |",
        "| --- | ---: | --- |",
        *_families(ruled, counts),
        "",
        "## Without one",
        "",
        "A blocked operator pins all axes that it touches: what is unknown about it costs freedom",
        "and never correctness.",
        "",
        "| operator | why | models |",
        "| --- | --- | ---: |",
        *(
            f"| `{name}` | {what_is_known(name)} | {counts[name]} |"
            for name in sorted(counts)
            if name not in ruled
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
