"""What an installation exposes: draftwood's packages and nothing bare."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_a_wheel_holds_only_draftwood(tmp_path):
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools 77, here is {setuptools.__version__}")
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        target = source / name
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    run = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"draftwood"}
    assert "draftwood/kernels/rms_norm.py" in names and "draftwood/reference/rms_norm.py" in names
    assert (
        "draftwood/lab/oracles.py" in names
        and "draftwood/perf/cli.py" in names
        and "draftwood/kernels/py.typed" in names
    )


def test_transformers_imports_from_the_repositorys_root():
    """Where transformers is installed: its probe for a package called `kernels` must not find ours."""
    pytest.importorskip("transformers")
    code = "from transformers import Qwen3_5TextConfig, Qwen3_5ForCausalLM"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})


@pytest.mark.parametrize("way", [["-c", "import importlib.util as u; print(u.find_spec('kernels') is not None)"]])
def test_kernels_from_the_root_is_a_bare_namespace_at_most(way):
    """`python -c` puts the root on the path: the folder may be seen there, but as a namespace without __version__ or
    code."""
    code = "import kernels; print(getattr(kernels, '__version__', None), getattr(kernels, '__file__', None))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode != 0 or run.stdout.strip() == "None None"
