"""Where trials are kept.

    nothing, or a path               a journal: one file of JSON lines, appended and synced to disk line by line
    postgresql://user:pw@host/name   many GPUs and machines share one study
    grpc://host:port                 the same through Optuna's proxy: `draftwood tune --serve`

A journal is locked with flock, which the kernel releases when a process dies: after `kill -9` nobody waits for a lock
that nobody holds. A line that was cut short by such a death is no record, and is removed by the next writer.
"""

import fcntl
import os
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

# creating the tables of a fresh database from two processes at once fails in one of them
TRIES = 8


def default_journal() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "draftwood" / "tune.journal"


class Flock(JournalFileOpenLock):
    """An exclusive lock on the journal itself; whoever takes it finds a file that ends with a whole line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.handle = -1

    def acquire(self) -> bool:
        self.handle = os.open(self.file, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        self._cut_torn_line()
        return True

    def release(self) -> None:
        os.close(self.handle)

    def _cut_torn_line(self) -> None:
        size = os.fstat(self.handle).st_size
        if not size or os.pread(self.handle, 1, size - 1) == b"\n":
            return
        end = size
        while end and b"\n" not in (chunk := os.pread(self.handle, min(end, 65536), max(0, end - 65536))):
            end = max(0, end - 65536)
        os.ftruncate(self.handle, max(0, end - 65536) + chunk.rfind(b"\n") + 1 if end else 0)


def open_storage(where: str = "") -> BaseStorage:
    scheme = urlsplit(where).scheme
    if scheme == "grpc":
        return _proxy(where)
    if scheme.startswith(("postgresql", "mysql", "sqlite")):
        return _database(where)
    if "://" in where:
        raise ValueError(f"storage '{where}': a path, postgresql://…, or grpc://host:port")
    file = Path(where) if where else default_journal()
    file.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=Flock(file)))


def _proxy(where: str) -> BaseStorage:
    if find_spec("grpc") is None:
        raise ValueError("grpc:// needs grpcio; pip install 'draftwood[cluster]'")
    address = urlsplit(where)
    proxy = optuna.storages.GrpcStorageProxy(host=address.hostname or "localhost", port=address.port or 13000)
    proxy.wait_server_ready(timeout=60)
    return proxy


def _database(where: str) -> BaseStorage:
    if where.startswith("postgresql://"):
        if find_spec("psycopg") is None:
            raise ValueError("postgresql:// needs psycopg; pip install 'draftwood[cluster]'")
        where = where.replace("postgresql://", "postgresql+psycopg://", 1)
    from sqlalchemy.exc import SQLAlchemyError

    for attempt in range(TRIES):
        try:
            return optuna.storages.get_storage(where)
        except SQLAlchemyError:
            if attempt == TRIES - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


def serve(where: str, port: int) -> None:
    """Serve the storage to other machines until interrupted."""
    optuna.storages.run_grpc_proxy_server(open_storage(where), host="0.0.0.0", port=port)
