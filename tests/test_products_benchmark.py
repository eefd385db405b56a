"""The benchmark of products compares orders by what they collect."""

from __future__ import annotations

from benchmarks import products


def test_every_way_finds_what_is_the_same_and_none_more_than_the_best() -> None:
    rows = products.measured(256)
    assert len(rows) == len(products.SHARED) * len(products.WAYS)
    for shared, name, _, _, collected in rows:
        assert float(collected) <= 1.0001
        if shared == "1.0":
            assert float(collected) == 1, name
    independent = {name: float(c) for shared, name, _, _, c in rows if shared == "0.0"}
    assert independent["via bf16"] > independent["projected on an eighth"]
    text = products.table(rows, 256)
    assert text.count("| 1.00 |") >= len(products.SHARED)
