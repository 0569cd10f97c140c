"""Kernels run in the interpreter where there is no GPU; hypothesis is derandomised unless HYPOTHESIS_PROFILE says
otherwise."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

# before numpy is there: products of tiles take its threads a hundred times as long to share as to do
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# `python -m pytest` puts the root on sys.path, where a bare `kernels` would shadow the package of that name
sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from draftwood.lab import interpreter  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

interpreter.install()
torch.set_num_threads(1)
settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=15,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", max_examples=300, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def here(monkeypatch, capsys):
    """The command line in this process: one of its own takes seconds to import torch."""
    from draftwood.perf.cli import main

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["draftwood", *map(str, args)])
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), said.out, said.err)

    return run
