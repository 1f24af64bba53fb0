"""Two processes on the CPU against one, in float32; run as a script, this file is one of them.

Mutants that these tests catch: every process taking the first part of the batch; gradients
averaged (each is weighted by its share already) or not exchanged at all; each process drawing
augmentation, mixing or stochastic depth as if its images were the whole batch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from matvit.config import MatViTConfig
from matvit.training import trainer as trainer_module
from matvit.training.data import LabelledPixels
from matvit.training.distributed import Processes
from matvit.training.run import STATE, load_state, train
from matvit.training.schedule import Phase, Recipe
from matvit.training.trainer import Trainer

ROOT = Path(__file__).parent.parent.parent

# No bias of the keys: its gradient is zero but for rounding, which AdamW would scale up to a step.
RECIPE = Recipe(
    name="test",
    model=MatViTConfig(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, qkv_bias=False
    ),
    phases=(
        Phase(
            epochs=2,
            img_size=16,
            sizes=("S", "XL", "random"),
            weights=(1.0, 2.0, 1.0),
            micro_batch=4,
        ),
    ),
    batch_size=8,
    drop_path_rate=0.3,
    mixup=0.8,
    cutmix=1.0,
    grayscale=0.3,
)
_UPDATE, _STEP = Trainer._update, Trainer.train_step


def noise() -> LabelledPixels:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), dtype=np.uint8)
    return LabelledPixels(pixels, np.arange(24) % 3, ["a", "b", "c"], 0)


def three_steps(run: Path) -> None:
    """Stop a run after three steps; leave its first gradients beside its state."""

    def update(self: Trainer) -> None:
        if self.step == 0 and self.processes.leads:
            gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}
            torch.save(gradients, run.with_suffix(".pt"))
        _UPDATE(self)

    def step(self: Trainer) -> dict[str, torch.Tensor]:
        if self.step == 3:
            raise SystemExit(0)
        return _STEP(self)

    trainer_module.resolve_precision = lambda *_: torch.float32
    Trainer._update, Trainer.train_step = update, step
    train(RECIPE, noise(), run, device="cpu")


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Start two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def single(tmp_path, monkeypatch):
    """The same three steps by one process."""
    monkeypatch.setattr(trainer_module, "resolve_precision", lambda *_: torch.float32)
    for name in ("_update", "train_step"):
        monkeypatch.setattr(Trainer, name, getattr(Trainer, name))  # put back afterwards
    with pytest.raises(SystemExit):
        three_steps(tmp_path / "single")
    monkeypatch.setattr(Trainer, "_update", _UPDATE)
    monkeypatch.setattr(Trainer, "train_step", _STEP)
    return tmp_path / "single"


def test_two_processes_take_the_steps_of_one_and_one_goes_on_from_them(single, tmp_path):
    done = launch(__file__, tmp_path / "double")
    assert done.returncode == 0, done.stderr
    # The same numbers, added up in another order.
    gradients, expected = (
        torch.load(path.with_suffix(".pt")) for path in (tmp_path / "double", single)
    )
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    assert min(gradient.abs().max() for gradient in expected.values()) > 1e-4
    after, alone = load_state(tmp_path / "double" / STATE), load_state(single / STATE)
    assert (after["step"], alone["step"]) == (3, 3)
    for key in ("model", "averaged"):
        torch.testing.assert_close(after[key], alone[key], rtol=0, atol=1e-4)
    resumed = train(RECIPE, noise(), tmp_path / "double", resume=True, device="cpu")
    whole = train(RECIPE, noise(), single, resume=True, device="cpu")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=1e-4)


def test_one_process_that_fails_ends_all_and_says_why(photo_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "precious.txt").write_text("x")
    done = launch("-m", "app.cli", "train", photo_folder, "--out", run, "--device", "cpu")
    assert done.returncode != 0
    assert "is not empty; choose another folder" in done.stderr
    assert [path.name for path in run.iterdir()] == ["precious.txt"]


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.launched() == Processes(rank=0, count=1, local_rank=0)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Processes.launched() == Processes(rank=9, count=16, local_rank=1)
    assert not Processes.launched().leads


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    third = Processes(rank=2, count=3, local_rank=2)
    assert third.device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="process 3 on this machine, but it has 2 GPUs"):
        third.device(torch.device("cuda"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    three_steps(Path(sys.argv[1]))
