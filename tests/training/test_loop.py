"""The loop: exact resume after a kill, honest stops, and checkpoints that survive faults."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stx.domains.splits import Dataset
from stx.files.atomic import atomic_write
from stx.files.errors import FileError, TrainingError
from stx.generator.gan import REMEMBERED, ClearAttributes, GanTask, KeptPictures
from stx.stylegan2.networks import Discriminator, Generator
from stx.training.loop import load_state, train

STEPS = 12
WORKER = """
import sys
import torch
torch.set_num_threads(int(sys.argv[2]))
from tests.training.test_loop import tiny_gan, STEPS, train
train(tiny_gan(), folder=sys.argv[1], steps=STEPS, config={"tiny": 1}, save_every=3, log_every=2)
"""


def tiny_gan(keep: float = 1.0, **given) -> GanTask:
    torch.manual_seed(0)
    pictures = np.random.RandomState(0).randint(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    sizes = {"size": 16, "channel_base": 128, "channel_max": 8}
    generator = Generator(z_dim=8, n_mlp=2, **sizes)
    red = ClearAttributes(lambda fake: fake[:, :1].mean((2, 3)), torch.tensor([0.3]), 1.0)
    return GanTask(
        generator=generator,
        discriminator=Discriminator(**sizes),
        data=Dataset(read=pictures.__getitem__, names=[str(i) for i in range(20)]),
        batch=4,
        pl_weight=2.0,
        r1_every=4,
        extras=[KeptPictures(generator.to(given.get("device", "cpu")), torch.randn(6, generator.num_ws, 8), keep), red],
        **given,
    )


def run(folder: Path, steps: int = STEPS, task: GanTask | None = None, **kwargs) -> pd.DataFrame:
    return train(
        task or tiny_gan(), folder=folder, steps=steps, config={"tiny": 1}, save_every=3, log_every=2, **kwargs
    )


def finished(folder: Path) -> int:
    return load_state(folder / "state.pt")["step"]


def assert_same(a, b, where=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return load_state(folder / "state.pt")


def test_stop_and_resume_to_the_same_bits(tmp_path, uninterrupted):
    run(tmp_path, steps=5)
    assert finished(tmp_path) == 5
    log = run(tmp_path)
    assert_same(load_state(tmp_path / "state.pt"), uninterrupted)
    pd.testing.assert_frame_equal(log, pd.DataFrame(uninterrupted["rows"]))


def test_kill_in_the_middle_then_resume_to_the_same_bits(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", WORKER, str(folder), str(torch.get_num_threads())]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 300
    while not (folder / "state.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= finished(folder) <= STEPS
    subprocess.run(command, env=environment, check=True)
    assert_same(load_state(folder / "state.pt")["task"], uninterrupted["task"])


def test_sigterm_finishes_the_step_and_saves(tmp_path, uninterrupted):
    task = tiny_gan()
    plain_step = task.step

    def step(number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain_step(number)

    task.step = step
    run(tmp_path, task=task)
    assert finished(tmp_path) == 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run(tmp_path)
    assert_same(load_state(tmp_path / "state.pt")["task"], uninterrupted["task"])


def test_kept_codes_go_on_drawing_their_pictures(tmp_path):
    changes = {}
    for keep in (0.0, 1e4):
        task = tiny_gan(keep)
        kept = task.extras[0]
        log = run(tmp_path / str(keep), steps=60, task=task)
        change = torch.nn.functional.mse_loss(task.average(kept.codes), kept.before(kept.codes))
        changes[keep] = change.item()
        assert log["change"].iloc[-1] > 0
    assert 0 < changes[1e4] < changes[0.0] / 3


def test_attributes_become_clear_and_as_frequent_as_in_real_pictures():
    torch.manual_seed(0)
    shares = torch.tensor([0.1, 0.5, 0.8])
    extra = ClearAttributes(lambda fake: fake.mean((2, 3)), shares, 1.0)
    generator, net = tiny_gan().generator, torch.nn.Linear(8, 3)
    torch.nn.init.constant_(net.bias, -1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        extra(generator, net(torch.randn(16, 8))[:, :, None, None]).backward()
        optimizer.step()
    logits = net(torch.randn(4096, 8))
    torch.testing.assert_close((logits > 0).float().mean(0), shares, atol=0.06, rtol=0)
    assert (logits.abs() > 2).float().mean() > 0.7
    assert extra.seen.shape == (REMEMBERED, 3) and extra.seen.isfinite().all()


def test_loss_that_is_not_finite_stops_with_step_and_batch(tmp_path):
    task = tiny_gan()
    plain_step = task.step
    task.step = lambda number: plain_step(number) | ({"d_loss": float("nan")} if number == 4 else {})
    with pytest.raises(TrainingError, match=r"step 4: d_loss is nan \(batch of pictures \d+, \d+, \d+, \d+\)"):
        run(tmp_path, task=task)
    assert finished(tmp_path) == 3


def test_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path, steps=3)
    with pytest.raises(TrainingError, match="tiny: 1 there, 2 now"):
        train(tiny_gan(), folder=tmp_path, steps=6, config={"tiny": 2})
    with pytest.raises(TrainingError, match="seed: 0 there, 7 now"):
        train(tiny_gan(), folder=tmp_path, steps=6, config={"tiny": 1}, seed=7)


def test_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path, steps=3)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingError, match="state.pt: not a readable checkpoint"):
        run(tmp_path)


def test_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"step": 1, "config": {}, "evil": Evil()}, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="not a readable checkpoint"):
        run(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_full_disk_keeps_the_last_checkpoint(tmp_path):
    run(tmp_path, steps=3)
    before = (tmp_path / "state.pt").read_bytes()
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(FileError, match="free some space"), atomic_write(tmp_path / "state.pt") as part:
        part.symlink_to("/dev/full")
        part.write_bytes(b"x" * 100)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


def test_log_on_disk_is_the_returned_one(tmp_path):
    log = run(tmp_path, evaluate=lambda step: {"score": step / 2}, evaluate_every=5)
    stored = pd.read_csv(tmp_path / "log.csv")
    pd.testing.assert_frame_equal(stored, log)
    assert stored["score"].dropna().tolist() == [2.5, 5.0, 6.0]
    assert stored["step"].dropna().tolist() == sorted(stored["step"])


def test_a_head_start_is_the_discriminators_alone():
    task = tiny_gan()
    task.head_start = 2
    before = {k: v.clone() for k, v in task.generator.state_dict().items()}
    untrained = {k: v.clone() for k, v in task.discriminator.state_dict().items()}
    for step in range(3):
        same = all(torch.equal(v, before[k]) for k, v in task.generator.state_dict().items())
        assert same
        task.step(step)
    assert not all(torch.equal(v, before[k]) for k, v in task.generator.state_dict().items())
    assert not all(torch.equal(v, untrained[k]) for k, v in task.discriminator.state_dict().items())


def test_the_rate_falls_and_the_mapping_networks_is_higher():
    task = tiny_gan(lr_decay=0.5, steps=8, mapping_rate=10.0)
    rates = []
    for step in range(8):
        rates.append([group["lr"] for group in task.g_optimizer.param_groups])
        task.step(step)
    rates = np.array(rates) / rates[0][0]
    np.testing.assert_allclose(rates[:, 0], [1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(rates[:, 1], 10 * rates[:, 0])


def test_a_checkpoint_of_cuda_goes_on_elsewhere(tmp_path, uninterrupted):
    run(tmp_path, steps=3)
    state = load_state(tmp_path / "state.pt")
    for name in ("g_optimizer", "d_optimizer"):
        for group in state["task"][name]["param_groups"]:
            group |= {"capturable": True, "fused": True}
    torch.save(state, tmp_path / "state.pt")
    run(tmp_path)
    assert_same(load_state(tmp_path / "state.pt")["task"]["average"], uninterrupted["task"]["average"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")
def test_replayed_updates_are_the_updates():
    tasks = [tiny_gan(device="cuda") for _ in range(2)]
    tasks[1].replays = False
    tasks[1]._prepare()
    for step in range(3 * 8):
        logs = []
        for task in tasks:
            torch.manual_seed(step)
            logs.append(task.step(step))
        assert logs[0] == pytest.approx(logs[1], rel=1e-2)
    assert tasks[0].learn_smooth.graph and not tasks[1].learn_real.graph
