"""The benchmark of several processes measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ranks

ROW = {
    **{"gib": "1.0", "layers": "2", "load": "0.1", "matching": "4", "read_all": "100"},
    **{"recovered": "True", "sent": "3"},
}


def test_two_are_compared_with_one_of_the_same_size() -> None:
    rows = [
        {**ROW, "processes": "1", "seconds": "10", "busiest": "8", "path": "9", "read_most": "100"},
        {**ROW, "processes": "2", "seconds": "5", "busiest": "5", "path": "6", "read_most": "52"},
    ]
    last = ranks.table(rows).splitlines()[-1]
    cells = last.strip("| ").split(" | ")
    assert cells[8:13] == ["2.00", "1.60", "1.50", "52", "0.52"]


def test_the_critical_path_is_the_longest_between_any_two_exchanges() -> None:
    marks = [[(1.0, 2.0), (5.0, 5.0)], [(3.0, 3.5), (4.0, 4.0)]]
    assert ranks.critical_path(marks) == 3 + 1 + 3
    assert ranks.critical_path([[(6.0, 6.0)]]) == 6


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="Linux")
def test_what_processes_say_and_take_is_told(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['RANK'], os.environ['WORLD_SIZE'])"
    ended = ranks.run_together(["-c", code], 2, tmp_path / "said")
    assert ended.said == "0 2\n"
    assert ended.busiest > 0
    assert ended.seconds > 0
    with pytest.raises(ranks.click.ClickException, match="ended with 3"):
        ranks.run_together(["-c", "raise SystemExit(3)"], 2, tmp_path / "said")
