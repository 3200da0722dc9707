"""Data parallel training by two processes of ``torchrun`` over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.quantize.training.tiny import data, network  # noqa: E402
from tvm_q4.errors import InputError  # noqa: E402
from tvm_q4.quantize import TrainingOptions, prepare_qat  # noqa: E402
from tvm_q4.quantize.training import train  # noqa: E402
from tvm_q4.quantize.training.distributed import Workplace  # noqa: E402
from tvm_q4.quantize.training.trainer import _check_share  # noqa: E402

ROOT = Path(__file__).parents[3]
OPTIONS = TrainingOptions(epochs=2, learning_rate=0.01, batch_size=8, device="cpu")
SCRIPT = """
import os, sys, torch
from pathlib import Path
from tests.quantize.training import test_distributed as t
model = t.trained(Path(sys.argv[1]) / "checkpoint.pt")
torch.save(model.state_dict(), Path(sys.argv[1]) / f"rank{os.environ['RANK']}.pt")
"""


def trained(checkpoint):
    """A network after training with learned scales."""
    x = torch.from_numpy(data(40).read(0, 40))
    prepared = prepare_qat(network().eval(), (x[:2],), [x], "uniform4")
    train(prepared, data(40), OPTIONS, checkpoint=checkpoint, progress=False)
    return prepared


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", "29617", str(script), str(tmp_path),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    states = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    alone = trained(None).state_dict()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        # Gradients are summed in another order, so the last bits differ.
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="batch_size is 8; it must be a multiple of the 3"):
        _check_share(OPTIONS, Workplace(0, 3, torch.device("cpu")))
