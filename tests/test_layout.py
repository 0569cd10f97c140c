"""The repository's shape: one op, one name, one file a folder; imports point one way; nothing bare is importable."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from draftwood.reference.ops import OPS

ROOT = Path(__file__).resolve().parent.parent
# folder -> what of draftwood it may import
ARROW = {
    "reference": {"reference"},
    "kernels": {"reference", "kernels"},
    "tests/lab": {"reference", "kernels", "lab"},
    "autotune": {"reference", "kernels", "lab", "autotune"},
    "models": {"reference", "kernels", "models"},
}
# what `autotune` holds besides a space per op
TUNER = {
    "ahead", "atlas", "binary", "budget", "drive", "effort", "elsewhere", "foresight", "gpu", "landscape", "neighbours",
    "outcome", "race", "report", "sampler", "simulate", "space", "storage", "surrogate", "timer", "trials", "tuner",
    "winners", "worker",
}  # fmt: skip
FOREIGN = {
    "reference": {"triton", "optuna", "hypothesis", "gguf"},
    "kernels": {"optuna", "hypothesis", "gguf"},
    "models": {"triton", "optuna", "hypothesis"},
}


def imports(file: Path) -> set[str]:
    """Absolute module names a file imports, relative ones resolved against draftwood."""
    folder = file.relative_to(ROOT).parts[:-1]
    package = ["draftwood", "lab", *folder[2:]] if folder[:2] == ("tests", "lab") else ["draftwood", *folder]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | ({f"{name}.{alias.name}" for alias in node.names} if name == "draftwood" else set())
    return found


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_file_of_its_name_in_every_folder(op):
    for file in (
        f"reference/{op}.py",
        f"kernels/{op}.py",
        f"autotune/{op}.py",
        f"tests/test_{op}.py",
        f"tests/lab/mutants/{op}.py",
    ):
        assert (ROOT / file).is_file(), f"{op} needs {file}"


def test_no_file_stands_for_an_op_that_is_not_registered():
    for folder in ("autotune", "tests/lab/mutants"):
        known = {*OPS, *TUNER}
        assert {file.stem for file in (ROOT / folder).glob("*.py")} <= known


@pytest.mark.parametrize("folder", ARROW)
def test_imports_follow_the_arrow(folder):
    for file in (ROOT / folder).rglob("*.py"):
        ours = {name.split(".")[1] for name in imports(file) if name.startswith("draftwood.")}
        assert ours <= ARROW[folder], f"{file.relative_to(ROOT)} imports {ours - ARROW[folder]}"


@pytest.mark.parametrize("folder", FOREIGN)
def test_a_folder_imports_only_what_it_is_for(folder):
    for file in (ROOT / folder).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(file)} & FOREIGN[folder], file.relative_to(ROOT)


def test_no_module_is_called_utils():
    banned = {"utils", "helpers", "common", "misc", "manager", "base"}
    ours = [file.relative_to(ROOT) for file in ROOT.rglob("*.py")]
    assert not [file for file in ours if file.stem in banned and not file.parts[0].startswith(".")]


def test_every_folder_with_code_is_packaged():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = {name: settings["package-dir"].get(name) for name in settings["packages"]}
    homes = {
        str(
            ROOT
            / (
                folder
                or "/".join(
                    ["tests", *name.split(".")[1:]] if name.startswith("draftwood.lab") else name.split(".")[1:]
                )
            )
        )
        for name, folder in mapped.items()
    }
    for folder in (*ARROW, "perf"):
        for file in (ROOT / folder).rglob("*.py"):
            assert str(file.parent) in homes, f"{file.parent} is missing from [tool.setuptools] packages"


def test_the_package_folders_are_linked_for_type_checkers_and_typed():
    for name in ("reference", "kernels", "autotune", "models", "perf", "lab"):
        link = ROOT / ".typings" / "draftwood" / name
        assert link.is_symlink() and link.resolve().is_dir() and (link / "py.typed").exists()


def test_importing_every_kernel_needs_no_gpu():
    code = "from draftwood.reference.ops import registered; [op.module('kernels') for op in registered().values()]"
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / ".typings")}
    env.pop("TRITON_INTERPRET", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=ROOT.parent)


def test_bare_names_are_not_importable_from_elsewhere(tmp_path):
    code = (
        "import importlib.util as u; print([n for n in ('kernels','reference','autotune','models') if u.find_spec(n)])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert run.stdout.strip() == "[]"
