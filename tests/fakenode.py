"""A node of a cluster as the kernel would describe it: processes in Slurm's jobs and Kubernetes' containers.

node = Node(tmp_path)
node.process(100, "0::/system.slice/slurmstepd.scope/job_5/step_batch/user/task_0", SLURM_JOB_ID="5")
HolderCollector(root=node.root)
"""

from pathlib import Path

from faketree import Machine

MACHINE = "mnt:[4026531841]"  # the mount namespace of the machine itself


class Node(Machine):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._views: dict[str, list[str]] = {}
        self.disk("sda", "8:0", {"sda1": "8:1"})
        self.mount("/", "8:1", "ext4", "/dev/sda1")
        self.process(1, "0::/init.scope")
        self.process(500, "0::/system.slice/ssh.service")

    def mount(self, point, number, file_system, source="none", **options) -> int:
        identity = super().mount(point, number, file_system, source, **options)
        for pid in (path.name for path in (self.root / "proc").iterdir() if path.name.isdigit()):
            if self._namespace(pid) == MACHINE:
                self._mountinfo(pid, MACHINE)
        return identity

    def view(self, namespace: str, *mounts: tuple[str, str, str, str]) -> None:
        """What a container sees: (mount point, number, file system, folder of it); all mounted on the first one.

        A mount point that begins with `>` was mounted below the mount before it, not on the root.
        """
        lines, before = [], 600
        for place, (point, number, file_system, folder) in enumerate(mounts):
            parent = 1 if place == 0 else before if point.startswith(">") else 600
            before = 600 + place
            where = f"{before} {parent} {number} {folder} {point.lstrip('>')} rw,relatime"
            lines.append(f"{where} - {file_system} none rw")
        self._views[namespace] = lines

    def process(self, pid, *cgroup, namespace=MACHINE, files=(), maps=(), **environment) -> None:
        """A process; *cgroup*: lines of /proc/PID/cgroup; *files*: (path, mount id) open for reading."""
        home = self.root / "proc" / str(pid)
        (home / "ns").mkdir(parents=True, exist_ok=True)
        (home / "ns/mnt").symlink_to(namespace)
        self.write(f"proc/{pid}/cgroup", "".join(f"{line}\n" for line in cgroup))
        variables = "".join(f"{name}={value}\0" for name, value in {"PATH": "/bin", **environment}.items())
        self.write(f"proc/{pid}/environ", variables)
        self._mountinfo(pid, namespace)
        (home / "fd").mkdir(exist_ok=True)
        for number, (path, mount) in enumerate(files, 3):
            (home / "fd" / str(number)).symlink_to(path)
            self.write(f"proc/{pid}/fdinfo/{number}", f"pos:\t0\nflags:\t0100000\nmnt_id:\t{mount}\n")
        self.write(f"proc/{pid}/maps", "".join(f"{line}\n" for line in maps))

    def end(self, *pids) -> None:
        """Processes end."""
        for pid in pids:
            (self.root / "proc" / str(pid)).rename(self.root / f"ended-{pid}")

    def _namespace(self, pid) -> str:
        return str((self.root / "proc" / str(pid) / "ns/mnt").readlink())

    def _mountinfo(self, pid, namespace) -> None:
        lines = self._mounts if namespace == MACHINE else self._views[namespace]
        self.write(f"proc/{pid}/mountinfo", "".join(f"{line}\n" for line in lines))
