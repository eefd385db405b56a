"""Folders that several processes wrote together are read whole in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from fxrebasin.storage.checkpoint import read_checkpoint
from tests.support.checkpoint_layouts import Net, net, optimiser, quiet


def save_a_part(rank: int, folder: str) -> None:
    """What each of two processes does: shard a net with FSDP and save it with its optimiser."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with quiet():
        torch.distributed.init_process_group(
            "gloo", rank=rank, world_size=2, init_method=f"file://{folder}-meeting"
        )
        model, mesh = net(), init_device_mesh("cpu", (2,))
        fully_shard(model.blocks, mesh=mesh)
        fully_shard(model, mesh=mesh)
        weights, moments = get_state_dict(model, optimiser(model))
        dcp.save({"app": {"model": weights, "optim": moments}}, checkpoint_id=folder)
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_what_fsdp_wrote_in_two_processes_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "step-1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(save_a_part, (str(folder),), nprocs=2)
    assert len(list(folder.glob("*.distcp"))) == 2
    found = read_checkpoint(folder, Net())
    expected = net().state_dict()
    assert list(found.state) == list(expected)
    assert all(torch.equal(found.state[name], expected[name]) for name in expected)
    assert "app.optim" in found.left_out[0]
