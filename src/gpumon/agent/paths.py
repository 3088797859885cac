"""Which device a client's path is on, as the client sees it: through its mount namespace."""

from __future__ import annotations

from typing import Any

from gpumon.system.storage import StorageMap, zfs_pools, zpool_devices

_REASONS = {
    "container": "a layer of a container image whose folders this agent does not see",
    "unknown": "no block device is known of this file system",
}


class ClientPaths:
    """Thread-safe. ZFS alone has to be asked by a command: `refresh` does that, no request does."""

    def __init__(self, root: str = "/") -> None:
        self._pools: dict[str, list[str]] = {}
        self._root = root
        self._storage_map = StorageMap(root, zpool=lambda pool: self._pools.get(pool, ()))

    def refresh(self) -> None:
        """Learn which devices the ZFS pools of this machine are on. Takes seconds where a pool hangs."""
        self._pools = {pool: zpool_devices(pool) for pool in zfs_pools(self._root)}

    def device_of(self, path: str, pid: int) -> dict[str, Any]:
        """The answer of the API for one path."""
        if pid <= 0:
            return _unknown(path, "the agent does not see this process: it needs the host's pid namespace")
        try:
            storage = self._storage_map.seen_by(pid, path)
        except OSError as error:
            return _unknown(path, f"the mounts of process {pid} cannot be read: {error.strerror}")
        found: dict[str, Any] = {
            "path": path,
            "kind": storage.kind,
            "disks": list(storage.disks),
            "layers": list(storage.layers),
            "mount_point": storage.mount_point,
            "file_system": storage.file_system,
        }
        if storage.device:
            found["device"] = storage.device
        elif reason := _REASONS.get(storage.kind):
            found["reason"] = reason
        return found


def _unknown(path: str, reason: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {"disks": [], "layers": [], "mount_point": "", "file_system": ""}
    return {"path": path, "kind": "unknown", **nothing, "reason": reason}
