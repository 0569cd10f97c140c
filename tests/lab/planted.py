"""Kernel files with a planted bug, as modules of their own: what emulated kernels' tests must see."""

from __future__ import annotations

import linecache
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest


def modules(
    monkeypatch: pytest.MonkeyPatch, texts: Mapping[str, str], part: str | None, old: str, new: str
) -> dict[str, types.ModuleType]:
    """Files of kernels/lib by their names, `old` made `new` in one of them, or wherever it stands; they import each
    other in the order given."""
    wanted = texts if part is None else {part: texts[part]}
    assert any(old in text for text in wanted.values()), f"the text that this changes is gone: {old}"
    made = {}
    for name, text in texts.items():
        module = types.ModuleType(f"draftwood.kernels.lib.{name}_broken")
        module.__package__, module.__file__ = "draftwood.kernels.lib", f"{module.__name__}.py"
        monkeypatch.setitem(sys.modules, module.__name__, module)
        text = text.replace(old, new) if name in wanted else text
        for other in texts:
            text = text.replace(f"from .{other} import", f"from .{other}_broken import")
        # Triton asks for the lines of what it decorates
        lines = text.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, module.__file__, (len(text), None, lines, module.__file__))
        exec(compile(text, module.__file__, "exec"), module.__dict__)
        made[name] = module
    return made
