"""The CPU limit of the control group, read from files as the kernel lays them out."""

from pathlib import Path

import pytest

from polyloop.cli._environment import cgroup_cpu_limit, describe_cores, describe_interpreter


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
            },
            0.5,
        ),
        # In a container the path may be the host's: the mount itself is the group.
        ({"proc/self/cgroup": "0::/host/only\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        ({"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/unified/x/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/c\n",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    """For both versions of control groups."""
    lay(tmp_path, files)
    assert cgroup_cpu_limit(tmp_path) == limit


def test_this_machine_has_cores_and_an_interpreter() -> None:
    """The real thing can be read."""
    cores, interpreter = describe_cores(), describe_interpreter()
    assert 1 <= cores.usable <= cores.logical
    assert interpreter.build in {"free-threaded", "GIL"}
