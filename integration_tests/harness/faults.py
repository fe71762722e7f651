"""A second plugin, listed in a run's config, that makes real things go wrong at a chosen moment.

With `SDPO_TEST_SEED=N` every adapter begins with the same weights, also in a process of its own; the host draws them
before it sets a seed.

The environment says which fault, so that the config stays that of the run that is resumed, `SDPO_TEST_FAULT=…`:

- `note:FILE`: nothing but a line in FILE for every event of rank 0's life: forward passes, updates, files written.
- `die:N`: SIGKILL of rank 0 at event N of that life, counted from 1.
- `wait:SECONDS:NAME`: whoever opens a file with this in its path for writing takes that long, the first time.
- `break:NAME`: an error of no known kind where a file with this in its path is opened for writing.
- `raise:STEP:UPDATE:RANK`, `hang:STEP:UPDATE:RANK`, `memory:STEP:UPDATE:RANK`: an error, an update that takes for ever,
  PyTorch's error of a GPU that has no memory left.
- `pass:BATCH:RANK`: an error in that batch of a reference pass, counted from 1.
- `evaluate:BATCH:RANK`, `signal:BATCH:RANK`: an error, or SIGTERM to itself, in that batch of the host's evaluations.
- `worker:BATCH:RANK`: an error where a data loader worker of that rank puts its batch together.
- `poison:STEP:UPDATE:TOKEN`: the embedding of a token turns to NaN, on every rank.
- `limit:BYTES`: no file may grow beyond this, as under a quota.
- `limit-data:BYTES`: the same, from before the data are loaded.
- `single:`: a batch of one row is computed otherwise than the same row among others.
- `alone:`: accelerate gives every model back as it is, without the wrapper by which ranks share their gradients.
- `often:`: a run without bars, which tells its progress after every update, not every few seconds; so does `raise`.
- `slow:SECONDS`: every forward pass takes that much longer.
- `lag:RANK:SECONDS`: whatever that rank reads, lists, writes or removes in the output directory takes that much longer.
- `scale:STEP:UPDATE:PERCENT`: the embeddings become so much larger as that update begins.
- `signal-pass:NUMBER`: SIGTERM to itself in that forward pass without gradients since training began, counted from 1.
- `gate:FOLDER`: nothing, but each rank notes in a file of its own what its start gate is given.
- `seals:FOLDER`: nothing, but each rank notes in a file of its own which files it puts on disk for a seal.
- `reads:FILE`: nothing but a line in FILE, of its number of rows, for every set whose tokens are read as a whole.
- `full`: the disk says that it has a megabyte left.
- `cross-entropy:`: every load of a model puts another cross entropy in the place of PyTorch's, as Liger's does, which
  writes over the logits.
- `bf16:`: autocast in bfloat16, which the host refuses without a GPU.
- `flash:BYTES`: a flash attention, and no more scores than these may be there at once.
- `metrics:`: a metric of the user's own, as a plugin sets one.
- `engines:FOLDER`: nothing, but each rank notes in a file of its own what is left of DeepSpeed's engines.
- `hooks:FILE`: nothing but a line in FILE after every update, of the number of hooks on the model's embeddings.
- `profile:`: nothing, but a callback writes a file into the arguments' output directory as profilers do, after the
  first update.
- `parts:BYTES`: nothing, but no more logits than these may be there at once, and the log says how often they were read
  in parts.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
import weakref
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import ProgressCallback, TrainerCallback

from integration_tests.harness.packed import stand_in
from sdpo_plugin.host import progress
from sdpo_plugin.host.forward import head, scores

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree"}
LOOKS = FILE_EVENTS | {"os.scandir", "os.listdir", "os.rmdir"}
FAULTS = ("raise", "hang", "memory", "poison", "scale")
Usage = namedtuple("Usage", "total used free")


class FaultPlugin(BasePlugin):
    """Does nothing where the environment asks for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._kind, _, self._value = (os.environ.get("SDPO_TEST_FAULT") or "").partition(":")
        self._life: Life | None = None
        if self._kind == "limit-data":
            limit_files(int(self._value))

    def pre_model_load(self, cfg: Any) -> None:
        """The data are loaded, and the run has its directory. A second model begins no other life."""
        if "SDPO_TEST_SEED" in os.environ:
            torch.manual_seed(int(os.environ["SDPO_TEST_SEED"]))
        notes = self._kind in ("break", "wait") or (self._kind in ("note", "die") and _rank() == 0)
        if notes and self._life is None:
            self._life = Life(Path(cfg.output_dir), self._kind, self._value)
        if self._kind == "lag":
            rank, _, seconds = self._value.partition(":")
            if int(rank) == _rank():
                lag(Path(cfg.output_dir), float(seconds))
        if self._kind == "bf16":
            os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        if self._kind == "full":
            shutil.disk_usage = lambda path: Usage(2**30, 2**30 - 2**20, 2**20)
        if self._kind == "limit":
            limit_files(int(self._value))
        if self._kind == "parts":
            head.LOGITS_AT_ONCE = int(self._value)
        if self._kind == "reads":
            note_reads(Path(self._value))
        if self._kind == "cross-entropy":
            torch.nn.functional.cross_entropy = as_liger_does

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        """Called by the host when the trainer is built."""
        if self._life is not None:
            trainer.model.register_forward_pre_hook(self._life.forward)
            return []
        if self._kind == "often":
            trainer.remove_callback(ProgressCallback)
        if self._kind == "slow":
            seconds = float(self._value)
            trainer.model.register_forward_pre_hook(lambda module, arguments: time.sleep(seconds))
        if self._kind == "bf16":
            trainer.args.bf16 = True
        if self._kind == "flash":
            stand_in("flash_stand_in")
            trainer.model.config._attn_implementation_internal = "flash_stand_in"
            scores.SCORES_AT_ONCE = int(self._value)
        if self._kind == "single":
            trainer.model.get_input_embeddings().register_forward_hook(larger_where_alone)
        if self._kind == "alone":
            trainer.accelerator.prepare_model = lambda model, *arguments, **options: model
        if self._kind == "signal-pass":
            trainer.model.register_forward_pre_hook(InRefresh(int(self._value)))
        if self._kind in ("often", "raise"):
            progress.SECONDS_BETWEEN = 0.0
        if self._kind == "gate":
            note_gate(Path(self._value) / f"rank-{_rank()}")
        if self._kind == "seals":
            note_shares(Path(self._value) / f"rank-{_rank()}")
        if self._kind in ("pass", "worker"):
            batch, rank = map(int, self._value.split(":"))
            if rank == _rank() and self._kind == "pass":
                trainer.model.register_forward_pre_hook(Nth(batch, lambda module, *rest: not module.training))
            elif rank == _rank():
                spoil_batch(trainer, batch)
        if self._kind == "metrics":
            trainer.compute_metrics = lambda predictions: {}
        if self._kind == "parts":
            return [Parts(trainer.accelerator.unwrap_model(trainer.model).get_output_embeddings())]
        if self._kind == "engines":
            return [Engines(trainer, Path(self._value) / f"rank-{_rank()}")]
        if self._kind == "hooks":
            return [Hooks(Path(self._value))]
        if self._kind == "profile":
            return [Profile()]
        if self._kind in ("evaluate", "signal"):
            return [InEvaluation(self._kind, *map(int, self._value.split(":")))]
        return [Fault(self._kind, self._value)] if self._kind in FAULTS else []


def lag(output_dir: Path, seconds: float) -> None:
    """Let this rank come late to every file of the run, as where the file system is far away."""
    root, stat = str(output_dir.resolve()) + os.sep, os.stat

    def wait(place: Any) -> None:
        path = os.path.abspath(os.fspath(place)) if isinstance(place, (str, os.PathLike)) else ""  # noqa: PTH100
        if path.startswith(root) and path != f"{root}debug.log":
            time.sleep(seconds)

    def late_stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        wait(path)
        return stat(path, *args, **kwargs)

    os.stat = late_stat  # no event of its own
    sys.addaudithook(lambda event, arguments: wait(arguments[0]) if event in LOOKS else None)


def note_gate(file: Path) -> None:
    """Write a line for every step, with its name and the tolerance in nats, and let the gate decide as usual."""
    from sdpo_plugin import gate

    judge = gate.check_start

    def noted(**arguments: Any) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{arguments['step']} {arguments['tolerance']}\n")
        judge(**arguments)

    gate.check_start = noted


def note_reads(file: Path) -> None:
    """Write a line for every set that is read to work out the facts of its rows, and let it be read as usual."""
    from sdpo_plugin.host.data import columns

    read = columns.token_columns

    def noted(dataset: Any) -> Any:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{len(dataset)}\n")
        return read(dataset)

    columns.token_columns = noted


def note_shares(file: Path) -> None:
    """Write a line for every file that this rank reads, with its directory, and let it be read as usual."""
    from sdpo_plugin.host.engines import shares
    from sdpo_plugin.run_dir import sealed

    put = sealed.written

    def noted(directory: Path, names: list[str]) -> Any:
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(f"{directory.name} {name}\n" for name in names)
        return put(directory, names)

    shares.written = sealed.written = noted  # the seal itself reads what is left


cross_entropy = torch.nn.functional.cross_entropy


class Overwriting(torch.autograd.Function):
    """PyTorch's cross entropy, which writes the gradient over the logits, as a kernel does that autograd knows not."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, *args: Any) -> torch.Tensor:
        with torch.enable_grad():
            own = logits.detach().clone().requires_grad_()
            loss = cross_entropy(own, *args)
            (gradient,) = torch.autograd.grad(loss, own)
        logits.data.copy_(gradient)
        ctx.save_for_backward(gradient)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] * ctx.saved_tensors[0], None


def as_liger_does(logits: Any, labels: torch.Tensor) -> Any:
    """It takes nothing that is like a tensor."""
    assert type(logits) is torch.Tensor
    return Overwriting.apply(logits, labels)


class Engines(TrainerCallback):  # type: ignore[misc]
    """Notes, as each step begins, how many engines and optimizers of steps before it are still there, and the hooks of
    the model."""

    def __init__(self, trainer: Any, file: Path) -> None:
        self._trainer, self._file, self._seen = trainer, file, []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        gc.collect()
        engine, model = self._trainer.model_wrapped, self._trainer.model
        num_hooks = len(model._forward_hooks) + len(model._forward_pre_hooks)
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(f"{sum(one() is not None for one in self._seen)} {num_hooks}\n")
        self._seen += [weakref.ref(engine), weakref.ref(engine.optimizer)]


class Hooks(TrainerCallback):  # type: ignore[misc]
    """Notes how many there are, and how many modules are checkpointed."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        with self._file.open("a", encoding="utf-8") as lines:
            places = sum(getattr(module, "gradient_checkpointing", False) for module in model.modules())
            lines.write(f"{len(model.get_input_embeddings()._forward_hooks)} {places}\n")


class Profile(TrainerCallback):  # type: ignore[misc]
    """The host's `profiler_steps` works on GPUs alone, and makes no directory for what it writes."""

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            Path(args.output_dir, "profile").touch()


class Parts(TrainerCallback):  # type: ignore[misc]
    """Counts how often a head gave the log-probs of tokens in the place of logits, and else how many tokens' logits."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._calls: list[int] = []
        module.register_forward_hook(
            lambda module, given, logits: self._calls.append(logits[..., 0].numel() if logits.shape[-1] > 1 else 0)
        )

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Of a step."""
        told = f"logits read in parts: {self._calls.count(0)} of {len(self._calls)} times"
        print(f"{told}, else of {max(self._calls)} tokens at most", flush=True)


def _rank() -> int:
    return int(os.environ.get("RANK") or "0")


def larger_where_alone(module: Any, arguments: Any, embeddings: Any) -> Any:
    """Embeddings of a batch of one row are larger than they should be."""
    return embeddings * 1.1 if embeddings.shape[0] == 1 else embeddings


def spoil_batch(trainer: Any, batch: int) -> None:
    """Let the workers that load training rows break at a batch."""
    make_loader = trainer.get_train_dataloader

    def with_fault() -> Any:
        own = trainer.data_collator
        trainer.data_collator = Collator(own, batch)
        try:
            return make_loader()
        finally:
            trainer.data_collator = own

    trainer.get_train_dataloader = with_fault


class Nth:
    """Raises when it is called for the n-th time where it counts."""

    def __init__(self, number: int, counts: Callable[..., bool] = lambda *arguments: True) -> None:
        self._left, self._counts = number, counts

    def __call__(self, *arguments: Any) -> None:
        self._left -= self._counts(*arguments)
        if self._left == 0:
            raise KeyError("a fault of the test")


class Collator:
    """The trainer's own, which breaks in a worker process, and only there."""

    def __init__(self, own: Any, batch: int) -> None:
        self._own, self._fault = own, Nth(batch, lambda rows: multiprocessing.parent_process() is not None)

    def __call__(self, rows: Any) -> Any:
        self._fault(rows)
        return self._own(rows)


class InEvaluation(TrainerCallback):
    """A fault that happens once, in a batch of the evaluations that the host makes within a step."""

    def __init__(self, kind: str, batch: int, rank: int) -> None:
        self._kind, self._batch, self._rank = kind, batch, rank
        self._count = 0

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After every batch of an evaluation."""
        self._count += 1
        if self._count != self._batch or self._rank != _rank():
            return
        if self._kind == "evaluate":
            raise KeyError("a fault of the test")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # it is noticed by a thread


class InRefresh:
    """Stops the run in a forward pass between two updates."""

    def __init__(self, number: int) -> None:
        self._left, self._trains = number, False

    def __call__(self, module: Any, arguments: Any) -> None:
        self._trains |= module.training
        self._left -= self._trains and not module.training
        if self._left == 0:
            self._left = -1
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)  # it is noticed by a thread


class Fault(TrainerCallback):
    """A fault that happens once, when an update begins."""

    def __init__(self, kind: str, value: str) -> None:
        self.kind = kind
        self.step, self.update, self.value = map(int, value.split(":"))
        self._steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One training a step of the chain."""
        self._steps += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Before the first batch of an update."""
        if self._steps != self.step or state.global_step + 1 != self.update:
            return
        if self.kind == "poison":
            poison(model.get_input_embeddings().weight, self.value)
        elif self.kind == "scale":
            model.get_input_embeddings().weight.data *= 1 + self.value / 100
        elif _rank() == self.value:
            if self.kind == "raise":
                raise KeyError("a fault of the test")
            if self.kind == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            print("hangs", flush=True)
            time.sleep(600)


def limit_files(size: int) -> None:
    """Let no file grow beyond this."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def poison(weight: Any, token: int) -> None:
    """Spoil one row of an embedding, also where ZeRO-3 has shared it out."""
    if not hasattr(weight, "ds_id"):
        weight.data[token] = float("nan")
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
        weight.data[token] = float("nan")


class Life:
    """Counts what a run does: forward passes, and changes to its output directory (but for lock and log)."""

    def __init__(self, output_dir: Path, kind: str, value: str) -> None:
        self._root = str(output_dir.resolve()) + os.sep
        self._file = Path(value).open("w", encoding="utf-8") if kind == "note" else None  # noqa: SIM115 - for this life
        self._dies_at = int(value) if kind == "die" else 0
        self._breaks_at = value if kind == "break" else None
        seconds, _, self._waits_at = value.partition(":") if kind == "wait" else ("0", "", None)
        self._seconds = float(seconds)
        self._count = 0
        self._pid = os.getpid()
        sys.addaudithook(self._audit)

    def forward(self, module: Any, arguments: Any) -> None:
        """A batch goes through the model."""
        self._event("train" if module.training else "pass")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.path.abspath(os.fspath(arguments[0]))  # noqa: PTH100 - resolve() reads the disk
        reads = event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        if not path.startswith(self._root) or (reads and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        name = path.removeprefix(self._root)
        if name not in ("debug.log", "sdpo/lock"):
            self._event(f"{event} {name}")

    def _event(self, what: str) -> None:
        if os.getpid() != self._pid:  # a worker process
            return
        self._count += 1
        if self._breaks_at is not None and self._breaks_at in what:
            raise KeyError("a fault of the test")
        if self._waits_at is not None and self._waits_at in what:
            self._waits_at = None
            time.sleep(self._seconds)
        if self._file is not None:
            self._file.write(f"{what}\n")
            self._file.flush()
        if self._count == self._dies_at:
            os.kill(self._pid, signal.SIGKILL)
