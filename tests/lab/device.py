"""Turning the interpreter on, in time. Imports no Triton: its functions take the setting as they are defined."""

import os

import torch


def interpret_without_gpu() -> None:
    """Turn Triton's interpreter on where there is no GPU. Call before anything that imports Triton is imported."""
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
