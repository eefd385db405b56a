"""A symmetry found on one state meets another only where that has the constants it relied on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.permutation import Permutation
from fxrebasin.reliance import Reliance
from fxrebasin.storage.checkpoint import save_state_dict
from fxrebasin.uniformity import digest_of, varying_axes_of
from tests.support.randomise import log10_factorial as f

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


class Net(nn.Module):
    """Units that meet constants in a way that is given."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        self.enter, self.inner, self.leave = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=not name.startswith("lost"))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def twice(m: Any, x: Tensor, scale: Tensor) -> Tensor:
    """One scale on the units of two classes."""
    return m.leave((m.inner((m.enter(x) * scale).relu()) * scale).relu())


def filled(m: Any, x: Tensor) -> Tensor:
    """A constant of which a part is written."""
    scale = m.scale.clone()
    scale[0] = 2.0
    return twice(m, x, scale)


def looked_at(m: Any, x: Tensor) -> Tensor:
    h = m.enter(x)
    return m.leave((h * h.new_tensor(range(8)) if int(m.switch[0]) else h).relu())


def through_numpy(m: Any, x: Tensor) -> Tensor:
    ranks = m.switch.numpy().tolist()
    h = m.enter(x)
    return m.leave((h * torch.tensor([float(rank) for rank in ranks])).relu())


TWOS, RISING = torch.full((8,), 2.0), torch.linspace(1.0, 2.0, 8)
ORDER, OTHER_ORDER = torch.tensor([1, 0, 2, 3, 4, 5, 7, 6]), torch.arange(8)

# A model; its buffer; values that it was found with, may have, and may not have; its order.
KINDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str, list[Tensor], float]] = {
    "uniform": (lambda m, x: twice(m, x, m.scale), "scale", [TWOS, 3 * TWOS, RISING], f(8, 8)),
    "made of it": (
        lambda m, x: twice(m, x, ((m.scale + 1e-5).rsqrt() * 3).view(1, -1)),
        "scale",
        [TWOS, 3 * TWOS, RISING],
        f(8, 8),
    ),
    "sums of it": (
        lambda m, x: twice(m, x, m.scale.cumsum(0)),
        "scale",
        [0 * TWOS, 0 * TWOS, TWOS],
        f(8, 8),
    ),
    "a part of it": (
        lambda m, x: twice(m, x, m.scale[:8]),
        "scale",
        [torch.cat([TWOS, RISING]), torch.cat([TWOS, RISING]), torch.cat([RISING, TWOS])],
        f(8, 8),
    ),
    "rounded": (
        lambda m, x: twice(m, x, m.scale.floor()),
        "scale",
        [TWOS + RISING / 4, TWOS + RISING / 4, 2 * RISING],
        f(8, 8),
    ),
    "a part of it written": (filled, "scale", [TWOS, TWOS, 3 * TWOS], f(8, 8)),
    "index": (
        lambda m, x: m.leave(m.inner(m.enter(x)[:, m.order]).relu()),
        "order",
        [ORDER, ORDER.to(torch.int32), OTHER_ORDER],
        f(8, 8),
    ),
    "looked at": (
        looked_at,
        "switch",
        [torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 1])],
        f(8),
    ),
    "integers": (
        lambda m, x: m.leave((m.enter(x) * m.switch).relu()),
        "switch",
        [TWOS.long(), 3 * TWOS.long(), ORDER],
        f(8),
    ),
    "a mask": (
        lambda m, x: m.leave(m.enter(x).masked_fill(m.keep, 0.0).relu()),
        "keep",
        [TWOS > 0, TWOS < 0, ORDER > 3],
        f(8),
    ),
    "lost statistics": (
        lambda m, x: m.leave(F.batch_norm(m.enter(x), 0 * m.lost, m.lost).relu()),
        "lost",
        [TWOS, 3 * TWOS, RISING],
        f(8),
    ),
}


def build(name: str, which: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    function, buffer, values, _ = KINDS[name]
    value = values[which]
    net = Net(function, **{buffer: value.double() if value.is_floating_point() else value})
    return net.double().eval()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The state with the buffers that a state dict leaves out."""
    return {**model.state_dict(), **dict(model.named_buffers())}


@torch.no_grad()
def change(model: nn.Module, p: Permutation) -> float:
    """How much of the output a permutation changes, found on whatever state."""
    other = copy.deepcopy(model)
    moved = p.permute_state_dict(model.state_dict(), check_constants=False)
    other.load_state_dict(moved)
    return float((other(X) - model(X)).abs().max() / model(X).abs().max())


# permute_state_dict and apply -----------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_state_with_other_constants_is_refused(name: str) -> None:
    own, alike, unlike = (build(name, which) for which in range(3))
    buffer, expected = KINDS[name][1], KINDS[name][3]
    symmetry = fxrebasin.analyze(own, X)
    assert symmetry.log10_order() == pytest.approx(expected)
    assert [*symmetry.relies_on] == [buffer]
    p = symmetry.random(0)
    for model in (own, alike):
        assert change(model, p) < 1e-12
        p.permute_state_dict(full_state(model))
        if name != "looked at":  # which no tracer makes a graph of
            permuted = fxrebasin.apply(model, p, X)
            torch.testing.assert_close(permuted(X), model(X), rtol=1e-9, atol=1e-9)
    assert change(unlike, p) > 1e-3  # so that it is right to refuse it
    for call in (
        lambda: p.permute_state_dict(full_state(unlike)),
        lambda: p.inverse().compose(p).permute_state_dict(full_state(unlike)),
        lambda: fxrebasin.apply(unlike, p, X),
    ):
        with pytest.raises(ArchitectureMismatchError, match=rf"{buffer} (varies|has other)"):
            call()


def test_positions_may_be_looked_up_in_another_order() -> None:
    """With other constants the symmetry is the same, which is seen when it is analysed."""

    def looked_up(m: Any, x: Tensor) -> Tensor:
        return m.leave((m.enter(x) + m.table[m.at]).relu())

    nets = []
    for order in ([0, 1, 2, 3, 4], [4, 2, 2, 0, 1]):
        torch.manual_seed(len(nets))
        net = Net(looked_up, at=torch.tensor(order))
        net.table = nn.Parameter(torch.randn(5, 8))
        nets.append(net.double().eval())
    first, second = nets
    p = fxrebasin.analyze(first, X).random(0)
    with pytest.raises(ArchitectureMismatchError, match="at has other values"):
        p.permute_state_dict(second.state_dict())
    torch.testing.assert_close(fxrebasin.apply(second, p, X)(X), second(X), rtol=1e-9, atol=1e-9)
    aligned = fxrebasin.align_many(nets, example_inputs=X)
    for net, found in zip(nets, aligned, strict=True):
        moved = found.permute_state_dict(net.state_dict())
        other = copy.deepcopy(net)
        other.load_state_dict(moved)
        torch.testing.assert_close(other(X), net(X), rtol=1e-9, atol=1e-9)
    there = aligned[0].inverse().compose(aligned[1])
    there.permute_state_dict(second.state_dict())


def test_what_is_no_state_of_a_model_is_not_held_against_it() -> None:
    model = build("index", 0)
    p = fxrebasin.analyze(model, X).random(0)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    p.permute_state_dict({name: tensor**2 for name, tensor in parameters.items()})  # moments
    difference = {name: tensor - tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(ArchitectureMismatchError, match="order has other values"):
        p.permute_state_dict(difference)
    p.permute_state_dict(difference, check_constants=False)
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    p.permute_state_dict({**half, "order": ORDER.to(torch.uint8)})
    on_meta = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    assert p.permute_state_dict(on_meta)["enter.weight"].is_meta


def test_what_cannot_move_relies_on_nothing() -> None:
    model = build("integers", 2)
    symmetry = fxrebasin.analyze(model, X)
    assert symmetry.classes == ()
    assert symmetry.relies_on == {}
    empty = fxrebasin.analyze(copy.deepcopy(model).to("meta"), X.to("meta"))
    assert empty.relies_on == {}
    assert empty.classes == ()  # without data it may be anything


def test_values_that_leave_through_numpy_are_relied_on_or_pinned() -> None:
    torch.manual_seed(0)
    model = Net(through_numpy, switch=TWOS.long()).double().eval()
    symmetry = fxrebasin.analyze(model, X)
    other = Net(through_numpy, switch=ORDER).double().eval()
    if symmetry.classes:
        with pytest.raises(ArchitectureMismatchError, match="switch"):
            symmetry.random(0).permute_state_dict(other.state_dict())


# Many models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [fxrebasin.align_many, fxrebasin.merge_many])
@pytest.mark.parametrize("name", KINDS)
def test_models_with_different_constants(
    name: str, calls: Callable[..., Any], tmp_path: Path
) -> None:
    own, alike, unlike = (build(name, which, seed=which) for which in range(3))
    method = {"method": "merge_many", "example_inputs": X}
    calls([own, alike], **method)
    with pytest.raises(ArchitectureMismatchError, match=rf"models\[1\]:\n  {KINDS[name][1]}"):
        calls([own, unlike], **method)
    if name.startswith("lost"):
        return  # which files do not have
    files = []
    for number, model in enumerate((own, alike, unlike)):
        files.append(tmp_path / f"{number}.pt")
        save_state_dict(files[-1], model.state_dict())
    with pytest.raises(ArchitectureMismatchError, match=r"models\[1\]"):
        calls([files[0], files[2]], model=own, **method)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("lost")])
def test_files_are_analysed_with_their_own_constants(name: str, tmp_path: Path) -> None:
    """The module that says what the architecture is has constants of its own."""
    models = [build(name, 2, seed) for seed in range(2)]
    files = [tmp_path / "0.pt", tmp_path / "1.pt"]
    for file, model in zip(files, models, strict=True):
        save_state_dict(file, model.state_dict())
    aligned = fxrebasin.align_many(files, model=build(name, 0), example_inputs=X)
    for model, p in zip(models, aligned, strict=True):
        assert change(model, p) < 1e-12


def test_tensors_outside_the_state_are_compared() -> None:
    def held(m: Any, x: Tensor) -> Tensor:
        return m.leave((m.enter(x) * m.held).relu())

    nets = []
    for values in (TWOS, TWOS, RISING):
        torch.manual_seed(len(nets))
        net = Net(held).double().eval()
        net.held = values.double()
        nets.append(net)
    fxrebasin.align_many(nets[:2], example_inputs=X)
    with pytest.raises(ArchitectureMismatchError, match="tensors outside the state"):
        fxrebasin.align_many(nets[1:], example_inputs=X)


def test_a_reference_with_other_constants_is_noted() -> None:
    a, b = build("uniform", 2), build("uniform", 0, seed=1)
    report = fxrebasin.transform(b, a, X).meta["fxrebasin"]
    assert report.equivalence.passed
    assert any("scale varies along axis 0" in note for note in report.notes)
    with pytest.raises(ArchitectureMismatchError, match="scale"):
        report.certificate.inverse().permute_state_dict(a.state_dict())
    own = fxrebasin.transform(b, build("uniform", 1), X).meta["fxrebasin"]
    assert not any("other constants" in note for note in own.notes)


# Certificates ---------------------------------------------------------------------------------


def test_a_certificate_remembers_what_it_relies_on(tmp_path: Path) -> None:
    for name in ("uniform", "index"):
        p = fxrebasin.analyze(build(name, 0), X).random(0)
        p.save(tmp_path / "p.safetensors", overwrite=True)
        loaded = Permutation.load(tmp_path / "p.safetensors")
        assert loaded == p
        assert loaded.relies_on == p.relies_on
        assert loaded.inverse().relies_on == p.relies_on
        assert p.compose(loaded).relies_on == p.relies_on
        with pytest.raises(ArchitectureMismatchError, match=KINDS[name][1]):
            loaded.permute_state_dict(build(name, 2).state_dict())
        assert fxrebasin.apply(build(name, 1), loaded, X) is not None


def test_files_of_older_releases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    model = build("uniform", 0)
    p = fxrebasin.analyze(model, X).random(0)
    p.save(path)
    with safetensors.safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    document = json.loads(metadata["document"])
    del document["relies_on"]
    metadata |= {"document": json.dumps(document), "version": "1"}
    del metadata["checksum"]
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    old = Permutation.load(path)
    assert old == p
    assert old.relies_on == {}
    assert change(model, old) < 1e-12


def test_elements_of_different_groups_keep_what_both_rely_on() -> None:
    p = fxrebasin.analyze(build("index", 0), X).random(0)
    same = p.relying_on({"order": Reliance("another", None)})
    assert p.compose(same).relies_on == same.relies_on  # one group: it meets the state first
    q = Permutation(p.classes, p.arrays, {name: p.layout[name] for name in [*p.layout][:1]})
    assert p.compose(q).relies_on == p.relies_on
    assert p.compose(q.relying_on({"more": Reliance("1", (0,))})).relies_on.keys() == {
        *p.relies_on,
        "more",
    }
    with pytest.raises(InputError, match="different constants: order"):
        p.compose(q.relying_on(same.relies_on))


# The command line -----------------------------------------------------------------------------


def fresh() -> nn.Module:
    return build("uniform", 0)


def test_commands_analyse_the_state_that_they_are_given(tmp_path: Path) -> None:
    trained = [build("uniform", 2, seed).state_dict() for seed in range(2)]
    for name, state in zip("ab", trained, strict=True):
        save_state_dict(tmp_path / f"{name}.pt", state)
    common = ["tests.test_relied_on:fresh", "--input-shape", "5,4:float64"]
    orders = []
    for weights in ([], ["--weights", str(tmp_path / "a.pt")]):
        shown = CliRunner().invoke(main, ["inspect", *common, "--json", *weights])
        orders.append(json.loads(shown.output)["log10_order"])
    assert orders == pytest.approx([f(8, 8), f(8)], abs=1e-3)
    out = tmp_path / "out.safetensors"
    files = [f"--model-b={tmp_path / 'b.pt'}", f"--ref={tmp_path / 'a.pt'}", f"--out={out}"]
    done = CliRunner().invoke(main, ["transform", *common, *files])
    assert done.exit_code == 0, done.output
    checked = CliRunner().invoke(
        main, ["verify", *common, str(out), "--weights", str(tmp_path / "b.pt")]
    )
    assert checked.exit_code == 0, checked.output


# Telling constants apart ----------------------------------------------------------------------


def test_constants_are_told_apart_by_their_bits() -> None:
    assert varying_axes_of(torch.tensor([0.0, -0.0])) == (0,)
    assert varying_axes_of(torch.full((2, 3), torch.nan)) == ()
    assert varying_axes_of(torch.tensor([[1 + 2j, 1 - 2j]])) == (1,)
    assert varying_axes_of(torch.tensor([[True, False], [True, False]])) == (1,)
    assert varying_axes_of(torch.zeros(0, 3)) == ()
    assert digest_of(torch.tensor([0.0])) != digest_of(torch.tensor([-0.0]))
    assert digest_of(torch.tensor([0.5]).half()) == digest_of(torch.tensor([0.5]).double())
    assert digest_of(torch.zeros(2, 3)) != digest_of(torch.zeros(3, 2))
    assert digest_of(torch.tensor([1.0])) != digest_of(torch.tensor([1]))
