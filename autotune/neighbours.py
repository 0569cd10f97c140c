"""Who else is on the GPU, and whether it runs slower than it could: asked of nvidia-smi while trials run.

Times taken meanwhile are kept, with a note: the race against the incumbent cancels a slow clock, and what remains shows
in the spread. Where there is no nvidia-smi nothing is claimed.
"""

import os
import subprocess
import threading
from pathlib import Path

EVERY_S = 4.0
# bits of clocks_event_reasons.active that mean: slower than asked for
REASONS = {
    0x4: "throttled by the power limit",
    0x8: "slowed down by the hardware",
    0x20: "throttled by temperature",
    0x40: "throttled by temperature (hardware)",
    0x80: "slowed down by the power supply",
}


def throttling(mask: int) -> tuple[str, ...]:
    return tuple(text for bit, text in REASONS.items() if mask & bit)


def others(pids: list[int], ours: set[int]) -> list[int]:
    """Processes on the GPU that are not ours. One that this system does not know may be ours under another number."""
    unknown = [pid for pid in pids if not Path(f"/proc/{pid}").exists()]
    known = [pid for pid in pids if pid not in unknown and pid not in ours]
    return known + unknown[1:]


def family(root: int) -> set[int]:
    """A process and what it started, directly or not."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


class Neighbours:
    """A thread that looks every few seconds. `notes` says what was seen since it was last asked."""

    def __init__(self, uuid: str, every_s: float = EVERY_S) -> None:
        self.uuid, self.every_s = uuid, every_s
        self.root = os.getpid()
        self.seen: set[str] = set()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        if uuid:
            self.thread.start()

    def notes(self) -> tuple[str, ...]:
        with self.lock:
            found, self.seen = tuple(sorted(self.seen)), set()
        return found

    def close(self) -> None:
        self.stop.set()

    def _watch(self) -> None:
        while not self.stop.is_set():
            if (found := self._look()) is None:
                return
            with self.lock:
                self.seen |= set(found)
            self.stop.wait(self.every_s)

    def _look(self) -> list[str] | None:
        masks = self._ask("--query-gpu=clocks_event_reasons.active") or self._ask(
            "--query-gpu=clocks_throttle_reasons.active"
        )
        if not masks:
            return None
        pids = [int(text) for text in self._ask("--query-compute-apps=pid") or [] if text.isdigit()]
        found = [text for mask in masks if mask.startswith("0x") for text in throttling(int(mask, 16))]
        strangers = others(pids, family(self.root))
        return [*found, *([f"{len(strangers)} other processes on the GPU"] if strangers else [])]

    def _ask(self, query: str) -> list[str] | None:
        """The answer's lines; None where there is no such tool or question."""
        command = ["nvidia-smi", f"--id={self.uuid}", query, "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else None
