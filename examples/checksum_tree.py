"""The checksums of all files of a directory tree, on every core, in the order of their names.

``map`` reads and hashes so many files at once, and takes the next name from the walk when there is room, so a tree of
millions of files needs no more memory than one of hundreds. Without an argument it makes a tree of its own.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polyloop


def files(root: Path) -> Iterator[Path]:
    """The files below ``root``, in order."""
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def checksum(path: Path) -> tuple[Path, str]:
    """Read a file and hash it. Hashing leaves the GIL alone, so this uses every core on any build."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    polyloop.from_thread.check_cancelled()  # between two files anyway; for a function of many steps, between those
    return path, digest.hexdigest()


async def checksums(root: Path) -> str:
    """Print a line for each file; return the checksum of all lines."""
    total = hashlib.sha256()
    count = size = 0
    async with polyloop.map(checksum, files(root), limit=2 * (os.process_cpu_count() or 1)) as results:
        async for path, digest in results:
            line = f"{digest}  {path.relative_to(root)}"
            total.update(line.encode())
            count, size = count + 1, size + path.stat().st_size
            if count <= 3:
                print(line)
    print(f"… {count} files, {size:,} bytes")
    return total.hexdigest()


def make_tree(root: Path) -> None:
    """A few hundred files, some of them large."""
    for number in range(300):
        folder = root / f"folder {number % 10}" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03}.bin").write_bytes(number.to_bytes(2) * (500 * number))


def main() -> None:
    if len(sys.argv) > 1:
        print(polyloop.run(checksums(Path(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_tree(root)
        together = polyloop.run(checksums(root))
        one_by_one = hashlib.sha256()
        for path in files(root):
            one_by_one.update(f"{checksum(path)[1]}  {path.relative_to(root)}".encode())
    assert together == one_by_one.hexdigest()
    print("the same as one by one")


main()
