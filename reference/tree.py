"""Token trees, flat: node i has `parents[i]`, the index of its parent, always smaller than i.

         0              parents = [-1, 0, 0, 1, 1, 2]
        / \\
       1   2            -1  ROOT: a child of the committed context. Slot 0 is one; more than one makes a forest.
      / \\   \\           -2  PAD: no node at all. No ancestors, nobody's parent, its outputs are zero.
     3   4   5          Padding comes after all nodes.

Nodes need not be in depth-first order: siblings and branches interleave freely.
"""

import torch

ROOT = -1
PAD = -2


def depth(parents: torch.Tensor) -> torch.Tensor:
    """[T] -> [T] i32: 0 for roots, parent's depth + 1 for the others, -1 for padding."""
    depths: list[int] = []
    for parent in parents.tolist():
        depths.append(-1 if parent == PAD else 0 if parent == ROOT else depths[parent] + 1)
    return torch.tensor(depths, dtype=torch.int32)


def path(parents: torch.Tensor, node: int) -> list[int]:
    """The nodes from the root down to `node`, both included."""
    chain = [node]
    while (parent := int(parents[chain[-1]])) >= 0:
        chain.append(parent)
    return chain[::-1]


def check(parents: torch.Tensor) -> None:
    """Raise ValueError with the first slot that breaks the encoding. For hosts and tests: it reads the values."""
    padded = False
    for row in parents.reshape(-1, parents.shape[-1]).tolist():
        padded = False
        for node, parent in enumerate(row):
            if not PAD <= parent < node:
                raise ValueError(f"parents[{node}] is {parent}; a parent is smaller than its child, {ROOT} or {PAD}")
            if padded and parent != PAD:
                raise ValueError(f"parents[{node}] is {parent} after padding began; padding comes after all nodes")
            if parent >= 0 and row[parent] == PAD:
                raise ValueError(f"parents[{node}] is {parent}, which is a padding slot")
            padded = parent == PAD


SHAPES = ("chain", "star", "random", "binary", "ddtree", "forest", "padded")


def draw(shape: str, size: int, generator: torch.Generator) -> torch.Tensor:
    """[size] i32 parents of a tree of the named shape; what is random comes from the generator."""

    def below(high: int) -> int:
        return int(torch.randint(0, high, (1,), generator=generator))

    match shape:
        case "chain":
            parents = [node - 1 for node in range(size)]
        case "star":
            parents = [ROOT, *[0] * (size - 1)]
        case "binary":
            parents = [ROOT, *[(node - 1) // 2 for node in range(1, size)]]
        case "random":
            parents = [ROOT, *[below(node) for node in range(1, size)]]
        case "forest":
            parents = [ROOT, *[below(node + 1) - 1 for node in range(1, size)]]
        case "ddtree":
            # a spine of up to 15, then branches off it in best-first order
            spine = min(size, 16)
            parents = [node - 1 for node in range(spine)] + [below(node) for node in range(spine, size)]
        case "padded":
            real = max(1, size - max(1, size // 4))
            parents = [ROOT, *[below(node) for node in range(1, real)], *[PAD] * (size - real)]
        case _:
            raise ValueError(f"tree shapes are {', '.join(SHAPES)}, not '{shape}'")
    return torch.tensor(parents[:size], dtype=torch.int32)


def draw_batch(shape: str, batch: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """[batch, size] i32: a different tree a row where the shape is random."""
    return torch.stack([draw(shape, size, generator) for _ in range(batch)])
