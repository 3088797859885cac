"""A machine as the kernel would describe it: proc/ and sys/ of a test's own making under a folder.

machine = Machine(tmp_path)
machine.disk("nvme0n1", "259:0", {"nvme0n1p1": "259:1"})
machine.mount("/data", "259:1", "ext4")
StorageMap(machine.root).of_path("/data/file").device
"""

from pathlib import Path


class Machine:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._mounts: list[str] = []
        self._ids: dict[str, int] = {}
        (root / "proc/self").mkdir(parents=True)
        (root / "sys/class/block").mkdir(parents=True)
        (root / "sys/dev/block").mkdir(parents=True)

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def disk(self, name, number, partitions=None, *, below=(), backing=None, size=1 << 20, **files) -> None:
        """A block device; `files` are its sysfs attributes, with `_` for a folder: queue_rotational="1"."""
        home = self.root / "sys/devices" / name
        (home / "slaves").mkdir(parents=True)
        self._publish(home, name, number, size)
        for lower in below:
            (home / "slaves" / lower).symlink_to("../..")
        if backing is not None:
            self.write(f"sys/devices/{name}/loop/backing_file", backing + "\n")
        for key, text in files.items():
            self.write(f"sys/devices/{name}/{key.replace('_', '/', 1)}", text + "\n")
        for part, part_number in (partitions or {}).items():
            (home / part).mkdir()
            (home / part / "partition").write_text("1\n")
            self._publish(home / part, part, part_number, size)

    def _publish(self, home: Path, name: str, number: str, size: int) -> None:
        (home / "dev").write_text(number + "\n")
        (home / "size").write_text(f"{size}\n")
        (self.root / "sys/class/block" / name).symlink_to(home)
        (self.root / "sys/dev/block" / number).symlink_to(home)

    def mount(self, point, number, file_system, source="none", *, of="/", options="rw", parent=None) -> int:
        """Mount something; what lies over an older mount of the same or a higher point hides it."""
        above = parent if parent is not None else self._above(point)
        identity = 20 + len(self._mounts)
        point = point.replace(" ", "\\040")
        where = f"{identity} {above} {number} {of} {point} rw,relatime shared:1"
        self._mounts.append(f"{where} - {file_system} {source} {options}")
        self._ids[point] = identity
        self.write("proc/self/mountinfo", "\n".join(self._mounts) + "\n")
        return identity

    def _above(self, point: str) -> int:
        if point in self._ids:
            return self._ids[point]
        parents = [known for known in self._ids if (point + "/").startswith(known.rstrip("/") + "/")]
        return self._ids[max(parents, key=len)] if parents else 1

    def diskstats(self, **devices) -> None:
        """Counters per device: the 11 numbers of /proc/diskstats, or as many as are given."""
        lines = [
            f"   8       0 {name} {' '.join(map(str, [*numbers, *[0] * (11 - len(numbers))]))}"
            for name, numbers in devices.items()
        ]
        self.write("proc/diskstats", "\n".join(lines) + "\n")
