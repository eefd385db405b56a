"""Models and states that `fully_shard` spread over processes are taken as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fxrebasin.models.sharded import unsharded
from fxrebasin.sharding import is_sharded, own_part, whole
from tests.support.ranks import start

_EACH = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import fxrebasin
from tests.support.randomise import randomise

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 7, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.inner = nn.Sequential(nn.Conv2d(7, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 1))
        self.tied = nn.Linear(7, 7)
        self.again = self.tied
        self.last = nn.Linear(7, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = (x + self.inner(x)).mean((2, 3))
        return self.last(torch.relu(self.again(torch.relu(self.tied(x)))))

def net(seed):
    return randomise(Net(), seed).eval()

def sharded(seed):
    made = net(seed)
    for part in (made.inner, made.last, made):
        fully_shard(part, mesh=mesh)
    return made

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
expected = fxrebasin.match(net(1), ref=net(2), example_inputs=x)
a, b = sharded(2), sharded(1)
before = net(1)(x)
assert isinstance(b.last.weight, DTensor) and b.first.weight.to_local().shape[0] < 7

def same(found):
    return all((found.arrays[n] == p).all() for n, p in expected.arrays.items())

assert same(fxrebasin.match(b, ref=a, example_inputs=x))
assert same(fxrebasin.match(net(1), ref=a.state_dict(), example_inputs=x))
assert type(b).__name__ == "FSDPNet" and isinstance(b.last.weight, DTensor)
state = expected.permute_state_dict(b.state_dict())
moved = expected.permute_state_dict(net(1).state_dict())
for name, tensor in state.items():
    old = b.state_dict()[name]
    assert isinstance(tensor, DTensor) == isinstance(old, DTensor), name
    if isinstance(tensor, DTensor):
        assert tensor.placements == old.placements
        assert tensor.to_local().shape == old.to_local().shape
        tensor = tensor.full_tensor()
    assert torch.equal(tensor, moved[name]), name
graph = fxrebasin.transform(b, ref=a, example_inputs=x)
assert all(torch.equal(graph.state_dict()[n], t) for n, t in moved.items())
assert torch.allclose(b(x), before, rtol=1e-4, atol=1e-5)
assert not isinstance(b.first.weight, DTensor)  # until it is cut again
assert same(fxrebasin.match(b, ref=a, example_inputs=x))
b.load_state_dict(state)
assert torch.allclose(b(x), before, rtol=1e-4, atol=1e-5)
dist.destroy_process_group()
print("fine")
"""


def test_a_model_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    for process, said in start([["-c", _EACH]] * 2, tmp_path):
        assert process.returncode == 0, said
        assert said.strip().endswith("fine"), said


def test_what_is_not_sharded_is_taken_itself() -> None:
    net = nn.Linear(2, 2)
    assert unsharded(net) is net
    assert not is_sharded(net.weight)
    assert own_part(net.weight) is net.weight
    assert whole(net.weight).data_ptr() == net.weight.data_ptr()
    assert not whole(net.weight).requires_grad
    assert torch.equal(whole(net.weight), net.weight)
