"""Would gains of wide classes be cheaper from narrow numbers or from random projections?

    OMP_NUM_THREADS=1 python -m benchmarks.products --width 2048

For one matrix of gains of `width` units with as many weights each, of a pair that is independent
and of pairs that share a part of their weights: seconds of the processor for the products and for
the assignment that follows, and what the found order collects of what the best one does, summed up
in float64. Narrow products are rounded to their own dtype by PyTorch; those that are summed up in
float32 are `via bf16`. Projections are of every row on as many random directions as there are
columns left; multiplying by them counts. Writes `<out>/products-<width>.md`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np
import torch

from fxrebasin.solvers.assignment import assign
from fxrebasin.storage.files import publish

SHARED = (0.0, 0.1, 0.3, 1.0)
"""How much of the second model's weights is those of the first."""


def float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """As matching has it."""
    return a @ b.T


def bf16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Numbers and sums in bfloat16."""
    return (a.bfloat16() @ b.bfloat16().T).float()


def via_bf16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Numbers in bfloat16, sums in float32."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        return a @ b.T
    finally:
        settings.fp32_precision = before


def int8(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Numbers in eight bits, one scale for each matrix, sums in int32."""
    one, two = ((x * (127 / x.abs().max())).round_().to(torch.int8) for x in (a, b))
    return torch._int_mm(one, two.T).float()


def projected(share: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Rows on fewer directions, by the same random signs for both sides."""

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        signs = torch.randint(0, 2, (a.shape[1], a.shape[1] // share), generator=generator)
        turned = 2 * signs.float() - 1
        return (a @ turned) @ (b @ turned).T

    return product


WAYS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "float32": float32,
    "via bf16": via_bf16,
    "bf16": bf16,
    "int8": int8,
    "projected on a quarter": projected(4),
    "projected on an eighth": projected(8),
}


def measured(width: int) -> list[list[str]]:
    """The rows of the table."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(width, width, generator=generator)
    own = torch.randn(width, width, generator=generator)
    order = torch.randperm(width, generator=generator)
    rows = []
    for shared in SHARED:
        b = (shared * a + (1 - shared**2) ** 0.5 * own)[order]
        exact = (a.double() @ b.double().T).numpy()
        best = 0.0
        for name, way in WAYS.items():
            product, gains = _seconds(lambda way=way, b=b: way(a, b))  # type: ignore[misc]
            solving, found = _seconds(lambda gains=gains: assign(gains.numpy()))  # type: ignore[misc]
            collected = float(exact[np.arange(width), found].sum())
            best = collected if name == "float32" else best
            rows.append([str(shared), name, f"{product:.6f}", f"{solving:.6f}"])
            rows[-1] += [f"{collected / best:.6f}"]
    return rows


def _seconds(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Of the processor, the fastest of three runs; and what it came to."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        found = work()
        best = min(best, time.process_time() - began)
    return best, found


def table(rows: list[list[str]], width: int) -> str:
    """The rows for people, with how many times as fast as float32 each way is."""
    lines = [
        "# Products for the gains of a wide class",
        "",
        f"{width} units of {width} weights; {torch.get_num_threads()} threads; seconds of the",
        f"processor ({torch.backends.cpu.get_cpu_capability()}). `shared`: how much of B's weights",
        "is A's. `collected`: by the order found, as a share of that found from float32.",
        "",
        "| shared | product | seconds | times as fast | assignment | times as fast with it "
        "| collected |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    base: tuple[float, float] = (0.0, 0.0)
    for shared, name, product, solving, collected in rows:
        times = float(product), float(product) + float(solving)
        base = times if name == "float32" else base
        ratios = [f"{old / max(new, 1e-6):.2f}" for old, new in zip(base, times, strict=True)]
        took = [f"{float(text):.3f}" for text in (product, solving)]
        cells = [shared, name, took[0], ratios[0], took[1], ratios[1], collected]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--width", type=int, default=2048, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/products"))
def main(width: int, out: Path) -> None:
    """Measure, print, and write the table."""
    text = table(measured(width), width)
    click.echo(text)
    publish(out / f"products-{width}.md", text.encode(), overwrite=True)


if __name__ == "__main__":
    main()
