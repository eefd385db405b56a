"""Random networks against the groups that are found, and the breaker against faults."""

from __future__ import annotations

from unittest import mock

import pytest

from fxrebasin.kinds import GroupKind
from fxrebasin.passes.kinds.matrices import Matrices
from fxrebasin.passes.rules.scaling import SCALINGS
from tests.fuzz_kinds import __main__ as command
from tests.fuzz_kinds.attending import Attending
from tests.fuzz_kinds.check import WRONG, Checked, Verdict, check, drawn
from tests.fuzz_kinds.convolving import Convolving

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about modules that are in use


@pytest.mark.parametrize("index", range(9))
def test_no_more_is_found_than_there_is(index: int) -> None:
    assert check(drawn(7, index)).verdict not in WRONG


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_no_more_is_found_in_many_networks(seed: int) -> None:
    found = [check(drawn(100 + seed, index)) for index in range(6)]
    assert not [item.text() for item in found if item.verdict in WRONG]


def test_networks_are_the_same_for_a_seed() -> None:
    assert [drawn(3, k) for k in range(30)] == [drawn(3, k) for k in range(30)]
    assert len({drawn(3, k).text() for k in range(30)}) > 20


def test_the_breaker_sees_a_group_that_is_too_large() -> None:
    with mock.patch.object(Matrices, "kind", return_value=GroupKind.GENERAL_LINEAR):
        assert check(Attending()).verdict in WRONG


def test_the_breaker_sees_a_wrong_declaration() -> None:
    with mock.patch.dict(SCALINGS, {"gelu": SCALINGS["relu"]}):
        assert check(Convolving(bend="gelu")).verdict in WRONG


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seed", "7", "--networks", "1", "--less"]) == 0
    assert "1 networks: " in capsys.readouterr().out
    wrong = Checked(Attending(), Verdict.MORE, 2, 1, 0.0)
    with mock.patch.object(command, "check", return_value=wrong):
        assert command.main(["--networks", "1"]) == 1
    assert "more than there is: 2 of 1, error 0e+00: Attending()" in capsys.readouterr().out
