"""Checkpoints in the layouts that people have, each written and loaded by the library it is of."""

from __future__ import annotations

import argparse
import copy
import datetime
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.support.randomise import randomise


class Net(nn.Module):
    """Convolutions with a normalisation and a tied pair of matrices."""

    def __init__(self, width: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(nn.Conv2d(width, 5, 1), nn.ReLU(), nn.Conv2d(5, width, 1))
        self.down = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)
        self.up.weight = self.down.weight
        self.fc = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3))
        return self.fc(torch.relu(self.up(torch.relu(self.down(x)))))


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    """A net in which every unit differs."""
    made = Net()
    randomise(made, seed)
    made.norm.num_batches_tracked.fill_(seed + 3)
    return made.to(dtype).eval()


@dataclass(frozen=True)
class Layout:
    """How a library writes weights, and how it loads them.

    Args:
        save: writes what has the weights of two nets into a folder; the second one is an average.
        load: the net in what was written.
        load_average: the average, if the layout holds one.
    """

    save: Callable[[Net, Net, Path], Path]
    load: Callable[[Path], nn.Module]
    load_average: Callable[[Path], nn.Module] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of libraries about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def loaded(state: Any) -> Net:
    """A net with a state dict, strictly."""
    made = Net()
    dtype = next(t.dtype for t in state.values() if t.is_floating_point())
    made.to(dtype).load_state_dict(state)
    return made.eval()


def read(path: Path) -> Any:
    """What torch's unrestricted loader reads of a file that a test wrote."""
    return torch.load(path, weights_only=False)


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser with moments of every weight."""
    made = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model_state = copy.deepcopy(model.state_dict())
    made.step()
    model.load_state_dict(model_state)
    for parameter in model.parameters():
        parameter.grad = None
    return made


# --- Lightning


def lightning_module(dtype: torch.dtype = torch.float32) -> Any:
    """A module whose loss has weights, as Lightning's examples have it."""
    with quiet():
        import lightning

        class Lit(lightning.LightningModule):
            def __init__(self, rate: float = 0.1) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.model = Net()
                self.loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))

            def training_step(self, batch: Any, _: int) -> torch.Tensor:
                return self.loss(self.model(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                made = torch.optim.SGD(self.parameters(), 0.0, momentum=0.9)
                return [made], [torch.optim.lr_scheduler.StepLR(made, 1)]

        return Lit


def save_lightning(model: Net, _: Net, folder: Path) -> Path:
    with quiet():
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint

        dtype = model.fc.weight.dtype
        module = lightning_module()().to(dtype)
        data = [(torch.randn(2, 3, 6, 6, dtype=dtype), torch.tensor([0, 1]))]
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(dirpath=folder / "run")],
            default_root_dir=folder,
            precision="bf16-true" if dtype == torch.bfloat16 else "32-true",
        )
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
        module.model.load_state_dict(model.state_dict())
        trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def load_lightning(path: Path) -> nn.Module:
    with quiet():
        module = lightning_module().load_from_checkpoint(path, map_location="cpu")
    dtype = read(path)["state_dict"]["model.fc.weight"].dtype
    return loaded({n: t.to(dtype) for n, t in module.model.state_dict().items()} | {
        "norm.num_batches_tracked": module.model.norm.num_batches_tracked
    })  # fmt: skip


# --- timm


def save_timm(model: Net, average: Net, folder: Path) -> Path:
    from timm.utils import CheckpointSaver, ModelEmaV3

    ema = ModelEmaV3(model)
    ema.module.load_state_dict(average.state_dict())
    args = argparse.Namespace(model="net", lr=0.1, img_size=(3, 6, 6), started=Path("/data"))
    saver = CheckpointSaver(
        model,
        optimiser(model),
        args=args,
        model_ema=ema,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(3, metric=float(np.float64(0.5)))
    return folder / "model_best.pth.tar"


def load_timm(use_ema: bool) -> Callable[[Path], nn.Module]:
    def load(path: Path) -> nn.Module:
        from timm.models import load_checkpoint

        made = Net().to(read(path)["state_dict"]["fc.weight"].dtype).eval()
        load_checkpoint(made, str(path), use_ema=use_ema, weights_only=False)
        return made

    return load


# --- torchvision's references


def save_torchvision(model: Net, average: Net, folder: Path) -> Path:
    ema = AveragedModel(average, use_buffers=True)
    content = {
        "model": model.state_dict(),
        "optimizer": optimiser(model).state_dict(),
        "lr_scheduler": {"last_epoch": 3, "_last_lr": [np.float64(0.1)]},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, begun=datetime.datetime(2026, 1, 2), cut=np.float32(2)),
        "model_ema": ema.state_dict(),
    }
    torch.save(content, folder / "model_3.pth")
    return folder / "model_3.pth"


def load_average(path: Path, key: str) -> nn.Module:
    state = read(path)
    state = state[key] if key else state
    ema = AveragedModel(Net().to(state["module.fc.weight"].dtype), use_buffers=True)
    ema.load_state_dict(state)
    return ema.module.eval()


# --- BasicSR


def save_basicsr(model: Net, average: Net, folder: Path) -> Path:
    content = {"params": model.state_dict(), "params_ema": average.state_dict()}
    torch.save(content, folder / "net_g_100.pth")
    return folder / "net_g_100.pth"


# --- ldm and A1111


class LitEma(nn.Module):
    """The average of ldm.modules.ema: no dots in names, parameters only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(0.99))
        self.register_buffer("num_updates", torch.tensor(7))
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.clone().detach())

    def copy_to(self, model: nn.Module) -> None:
        own = dict(self.named_buffers())
        for name, parameter in model.named_parameters():
            parameter.data.copy_(own[name.replace(".", "")].data)


class Latent(nn.Module):
    """The names of ldm.models.diffusion.ddpm: a wrapper, an average, a schedule, another stage."""

    def __init__(self, model: Net) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = model
        self.model_ema = LitEma(self.model)
        self.register_buffer("betas", torch.linspace(0, 1, 5))
        self.register_buffer("alphas_cumprod", torch.linspace(1, 0, 5))
        self.first_stage_model = nn.Linear(2, 2)


def save_latent(model: Net, average: Net, folder: Path) -> Path:
    latent = Latent(model)
    wrapper = nn.Module()
    wrapper.diffusion_model = average
    latent.model_ema = LitEma(wrapper)
    torch.save({"state_dict": latent.state_dict(), "global_step": 9}, folder / "sd.ckpt")
    return folder / "sd.ckpt"


def load_latent(average: bool) -> Callable[[Path], nn.Module]:
    def load(path: Path) -> nn.Module:
        state = read(path)["state_dict"]
        dtype = state["model.diffusion_model.fc.weight"].dtype
        latent = Latent(Net().to(dtype))
        latent.load_state_dict(state)
        if average:
            latent.model_ema.copy_to(latent.model)
        return latent.model.diffusion_model.eval()

    return load


# --- wrappers of torch


def save_averaged(model: Net, _: Net, folder: Path) -> Path:
    torch.save(AveragedModel(model, use_buffers=True).state_dict(), folder / "swa.pt")
    return folder / "swa.pt"


def save_wrapped(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Net, Net, Path], Path]:
    def save(model: Net, _: Net, folder: Path) -> Path:
        torch.save({"net": wrap(model).state_dict()}, folder / "wrapped.pth")
        return folder / "wrapped.pth"

    return save


def load_wrapped(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Path], nn.Module]:
    def load(path: Path) -> nn.Module:
        state = read(path)["net"]
        inner = Net().to(next(iter(state.values())).dtype)
        wrap(inner).load_state_dict(state)
        return inner.eval()

    return load


def compiled_blocks(model: nn.Module) -> nn.Module:
    """Only a part in the middle is compiled."""
    model.blocks = torch.compile(model.blocks, backend="eager")
    return nn.DataParallel(model)


def save_compiled_blocks(model: Net, _: Net, folder: Path) -> Path:
    wrapped = compiled_blocks(copy.deepcopy(model))
    torch.save({"net": wrapped.state_dict()}, folder / "wrapped.pth")
    return folder / "wrapped.pth"


def load_compiled_blocks(path: Path) -> nn.Module:
    state = read(path)["net"]
    wrapped = compiled_blocks(Net().to(next(iter(state.values())).dtype))
    wrapped.load_state_dict(state)
    return loaded({n.replace("_orig_mod.", ""): t for n, t in wrapped.module.state_dict().items()})


# --- torch.distributed.checkpoint


def save_distributed(model: Net, _: Net, folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    content = {
        "model": model.state_dict(),
        "optim": optimiser(model).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }
    with quiet():
        dcp.save(content, checkpoint_id=folder / "step-3", no_dist=True)
    return folder / "step-3"


def load_distributed(path: Path) -> nn.Module:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(path).read_metadata().state_dict_metadata
    dtype = metadata["model.fc.weight"].properties.dtype
    state = {"model": Net().to(dtype).state_dict(), "epoch": 0}
    with quiet():
        dcp.load(state, checkpoint_id=path, no_dist=True)
    assert state["epoch"] == 3
    return loaded(state["model"])


# --- accelerate


def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


def save_accelerate_state(safe: bool) -> Callable[[Net, Net, Path], Path]:
    def save(model: Net, _: Net, folder: Path) -> Path:
        with quiet():
            acc = accelerator()
            made = optimiser(model)
            acc.prepare(model, made, torch.optim.lr_scheduler.StepLR(made, 1))
            acc.save_state(str(folder / "state"), safe_serialization=safe)
        return folder / "state"

    return save


def save_accelerate_shards(model: Net, _: Net, folder: Path) -> Path:
    with quiet():
        accelerator().save_model(model, str(folder / "sharded"), max_shard_size="0.3KB")
    return folder / "sharded"


def load_accelerate(path: Path) -> nn.Module:
    with quiet():
        from accelerate import load_checkpoint_in_model

        made = Net().to(dtype_in(path))
        load_checkpoint_in_model(made, str(path), strict=False)
    return made.eval()


def dtype_in(folder: Path) -> torch.dtype:
    """Of the weights in the files of a folder."""
    from safetensors.torch import load_file

    tensors = [t for path in folder.glob("*.safetensors") for t in load_file(path).values()]
    tensors += [t for path in folder.glob("pytorch_model.bin") for t in read(path).values()]
    return next(tensor.dtype for tensor in tensors if tensor.is_floating_point())


def load_accelerate_state(path: Path) -> nn.Module:
    with quiet():
        acc = accelerator()
        made = acc.prepare(Net().to(dtype_in(path)))
        acc.load_state(str(path))
    return made.eval()


# --- old files


def save_without_counts(model: Net, _: Net, folder: Path) -> Path:
    state = {n: t for n, t in model.state_dict().items() if "num_batches_tracked" not in n}
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def save_plain(suffix: str) -> Callable[[Net, Net, Path], Path]:
    def save(model: Net, _: Net, folder: Path) -> Path:
        torch.save(model.state_dict(), folder / f"net{suffix}")
        return folder / f"net{suffix}"

    return save


def save_safetensors(model: Net, _: Net, folder: Path) -> Path:
    from safetensors.torch import save_model

    save_model(model, str(folder / "net.safetensors"), metadata={"format": "pt", "epoch": "3"})
    return folder / "net.safetensors"


def load_safetensors(path: Path) -> nn.Module:
    from safetensors import safe_open
    from safetensors.torch import load_model

    with safe_open(path, "pt") as file:
        made = Net().to(file.get_tensor("fc.weight").dtype)
        assert dict(file.metadata())["epoch"] == "3"
    load_model(made, str(path))
    return made.eval()


def compiled(model: nn.Module) -> nn.Module:
    """As torch.compile wraps it; nothing is compiled before it runs."""
    return torch.compile(model, backend="eager")


LAYOUTS: dict[str, Layout] = {
    "lightning": Layout(save_lightning, load_lightning),
    "timm": Layout(save_timm, load_timm(use_ema=False), load_timm(use_ema=True)),
    "torchvision": Layout(
        save_torchvision,
        lambda path: loaded(read(path)["model"]),
        lambda path: load_average(path, "model_ema"),
    ),
    "basicsr": Layout(
        save_basicsr,
        lambda path: loaded(read(path)["params"]),
        lambda path: loaded(read(path)["params_ema"]),
    ),
    "ldm": Layout(save_latent, load_latent(average=False), load_latent(average=True)),
    "averaged model": Layout(save_averaged, lambda path: load_average(path, "")),
    "compiled": Layout(save_wrapped(compiled), load_wrapped(compiled)),
    "data parallel": Layout(save_wrapped(nn.DataParallel), load_wrapped(nn.DataParallel)),
    "compiled part": Layout(save_compiled_blocks, load_compiled_blocks),
    "distributed": Layout(save_distributed, load_distributed),
    "accelerate state": Layout(save_accelerate_state(safe=True), load_accelerate_state),
    "accelerate pickles": Layout(save_accelerate_state(safe=False), load_accelerate_state),
    "accelerate shards": Layout(save_accelerate_shards, load_accelerate),
    "without counts": Layout(save_without_counts, lambda path: loaded_old(read(path))),
    "safetensors": Layout(save_safetensors, load_safetensors),
    **{
        suffix: Layout(save_plain(suffix), lambda path: loaded(read(path)))
        for suffix in (".pt", ".pth", ".ckpt", ".bin", ".pth.tar")
    },
}


def loaded_old(state: Any) -> Net:
    """A net with a state that has no counts of batches, as torch loads it."""
    made = Net().to(state["fc.weight"].dtype)
    made.load_state_dict(state)
    return made.eval()
