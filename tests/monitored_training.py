"""A training that has something on every panel: epochs over files by two workers, transfers, communication, validation,
checkpoints, a failed step. python monitored_training.py FOLDER, until FOLDER/stop is there.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

import gpumon


class Files(Dataset):
    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.bin"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        descriptor = os.open(self.files[index], os.O_RDONLY)
        try:
            os.read(descriptor, 1 << 16)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        time.sleep(0.002)
        return torch.ones(16)


def main(folder):
    torch.set_num_threads(1)
    gpumon.instrument(data_paths=(folder,))
    model = torch.nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(Files(folder), batch_size=4, num_workers=2)
    steps = 0
    while not (Path(folder) / "stop").exists():
        for batch in loader:
            for phase in ("transfer", "communication"):
                with gpumon.phase(phase):
                    time.sleep(0.001)
            model(batch).sum().backward()
            time.sleep(0.2 if steps % 50 == 49 else 0.01)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        model.eval()
        with torch.no_grad():
            for batch in DataLoader(Files(folder), batch_size=16):
                model(batch)
        model.train()
        torch.save(model.state_dict(), Path(folder) / "model.pt")
        with contextlib.suppress(ValueError), gpumon.step():
            raise ValueError("a bad batch")


if __name__ == "__main__":
    main(sys.argv[1])
