"""Where compiled functions are kept on disk, so that a later process loads them instead of compiling them again.

Numba's own cache asks only whether the file that defines a function has changed. It does not notice a change in a
function that is called and compiled in, so it would keep an old softmax in a new training loop. Here the cache is a
folder named after everything that goes into the code: all sources of `privacy_gate.native`, the versions of Numba and
llvmlite, and the processor. Any change leads to a new, empty folder. Imported only where Numba is installed.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.misc.appdirs import AppDirs

ROOM = 64 << 20
"""Bytes that a disk must have free for machine code to be kept there."""

FOLDERS = 4
"""Folders of machine code that are kept in one place; the ones used longest ago are deleted."""

PREFIX = "native-"
"""Begins the name of each folder."""

SOURCES = Path(__file__).parent


@cache
def digest() -> str | None:
    """Names the code that this package, these compilers and this processor make; None if the sources cannot be read."""
    sources = sorted(SOURCES.glob("*.py"))
    processor = llvmlite.binding.get_host_cpu_name(), sorted(dict(llvmlite.binding.get_host_cpu_features()).items())
    parts = [repr((numba.__version__, llvmlite.__version__, processor)).encode()]
    try:
        for path in sources:
            parts += [path.name.encode(), path.read_bytes()]
    except OSError:
        return None
    hashed = sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()[:32] if sources else None


@cache
def folder() -> Path | None:
    """The folder for this digest; None if it cannot be kept anywhere.

    Tried in turn: NUMBA_CACHE_DIR if it is set, the package's own __pycache__, the user's cache.
    """
    name, chosen = digest(), numba.config.CACHE_DIR
    places = [SOURCES / "__pycache__", Path(AppDirs(appname="privacy_gate", appauthor=False).user_cache_dir)]
    if chosen:
        places.insert(0, Path(chosen).absolute() / "privacy_gate")
    return None if name is None else open_folder(places, name)


def open_folder(places: Iterable[Path], name: str) -> Path | None:
    """The folder of this name in the first place that can be written to, made if need be; None if there is none.

    Deletes folders of other names once there are more than FOLDERS in that place.
    """
    for place in places:
        if not place.is_absolute():  # as "~/.cache" is for a user without a home
            continue
        opened = place / f"{PREFIX}{name}"
        try:
            opened.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=opened).close()
            os.utime(opened)
        except OSError:
            continue
        _delete_oldest(path for path in place.glob(f"{PREFIX}*") if path != opened)
        return opened
    return None


def _delete_oldest(folders: Iterable[Path]) -> None:
    """Deletes all but the FOLDERS - 1 folders used last; another process may be deleting them too."""
    dated = []
    for path in folders:
        with suppress(OSError):
            dated.append((path.stat().st_mtime, path))
    for _, path in sorted(dated, reverse=True)[FOLDERS - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def cache_of(function: Callable[..., object]) -> "KernelCache | None":
    """The cache of a function to be compiled; None if there is no place for it, or too little room on the disk."""
    place = folder()
    try:
        if place is None or shutil.disk_usage(place).free < ROOM:
            return None
        return KernelCache(function)
    except OSError:  # the folder is gone, or the function comes from no file
        return None


class _Locator(_CacheLocator):  # type: ignore[misc] # Numba has no types
    """Says where a function is kept and by what its freshness is told."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._py_file = function.__code__.co_filename
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> tuple[str | None, str]:
        """The digest, and the function's own file, which need not be one of the package."""
        return digest(), sha256(Path(self._py_file).read_bytes()).hexdigest()

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Kept(CompileResultCacheImpl):  # type: ignore[misc] # Numba has no types
    """Numba's way of writing a compiled function down, in our place whatever NUMBA_CACHE_LOCATOR_CLASSES says."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator(function)
        self._filename_base = self.get_filename_base(f"{function.__module__}.{function.__qualname__}", "")


class KernelCache(FunctionCache):  # type: ignore[misc] # Numba has no types
    """Numba's cache of one function, in our folder. A disk that fails costs a compilation, never the run."""

    _impl_class = _Kept

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The function compiled for these types; None if it is not kept."""
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps the function compiled for these types, if the disk takes it."""
        with suppress(OSError):
            super().save_overload(sig, data)
