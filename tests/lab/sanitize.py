"""A second opinion on memory, from checkers that are not ours.

On a GPU the smoke cases run again under compute-sanitizer (memcheck, then racecheck). Elsewhere they run under
triton-viz, which proves bounds symbolically; it needs triton 3.6 and numpy < 2.4, so it gets an environment of its own,
made once under the user's cache directory.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ("memcheck", "racecheck")
VIZ = ("torch>=2.11", "triton==3.6.0", "numpy<2.4", "triton-viz==3.0", "rich", "typer")


def sanitize(ops: list[str], sources: list[str], console: "Console") -> int:
    """Run every op's smoke cases under the outside checker; the exit code says whether it objected."""
    extra = [word for source in sources for word in ("--ops", source)]
    if torch.cuda.is_available():
        return _compute_sanitizer(ops, extra, console)
    return _triton_viz(ops, extra, console)


def _compute_sanitizer(ops: list[str], extra: list[str], console: "Console") -> int:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        console.print("compute-sanitizer is not on the path; it comes with the CUDA toolkit")
        return 2
    worst = 0
    # the caching allocator hides neighbours from memcheck
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for name in TOOLS:
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m", "draftwood.perf.cli", "check"]
        code = subprocess.call(
            [*command, *ops, *extra, "--cases", "smoke", "--oracle", "numeric", "--json"],
            env=env,
            stdout=subprocess.DEVNULL,
        )
        console.print(f"compute-sanitizer {name}: {'clean' if code == 0 else f'exit code {code}'}", highlight=False)
        worst = max(worst, code)
    return 1 if worst else 0


def _triton_viz(ops: list[str], extra: list[str], console: "Console") -> int:
    python = _environment(console)
    if python is None:
        return 2
    env = {**os.environ, "PYTHONPATH": str(ROOT / ".typings"), "TRITON_INTERPRET": "1"}
    return subprocess.call([str(python), "-m", "draftwood.lab.symbolic", *ops, *extra], env=env)


def _environment(console: "Console") -> Path | None:
    """The Python of triton-viz's own environment; made on first use."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "draftwood" / "triton-viz-3.0"
    python, ready = home / "bin" / "python", home / ".ready"
    if ready.exists():
        return python
    console.print(f"setting triton-viz up in {home} (once)", highlight=False)
    subprocess.check_call([sys.executable, "-m", "venv", str(home)])
    # the torch that is here decides which build is taken there
    torch_here = f"torch=={torch.__version__}"
    for wanted in ([torch_here], list(VIZ)):
        if subprocess.call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]):
            console.print(f"could not install {' '.join(wanted)} into {home}", highlight=False)
            return None
    ready.touch()
    return python
