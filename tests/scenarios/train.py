"""The training of the scenarios: plain PyTorch, told by options what its data set does. Knows nothing of gpumon.

Prints one line of JSON at the end: what its own clock saw.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

SAMPLE_BYTES = 120_000


class Files(Dataset):
    """One sample per file."""

    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.bin"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        raw = self.files[index].read_bytes()
        return torch.frombuffer(bytearray(raw[:256]), dtype=torch.uint8).float()


class Mapped(Dataset):
    """Samples of one big file that is mapped into memory."""

    def __init__(self, folder):
        self.samples = np.memmap(Path(folder, "samples.npy"), dtype=np.uint8, mode="r").reshape(-1, 1 << 19)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return torch.from_numpy(self.samples[index][: 1 << 17 : 512].copy()).float()


class Made(Dataset):
    """Samples that cost sleep or CPU time and touch no file."""

    def __init__(self, length, sleep_s, burn_s):
        self.length, self.sleep_s, self.burn_s = length, sleep_s, burn_s

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.sleep_s:
            time.sleep(self.sleep_s)
        until = time.thread_time() + self.burn_s
        while time.thread_time() < until:
            sum(range(500))
        return torch.full((256,), float(index % 7))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--kind", choices=("files", "mapped", "made"), default="files")
    parser.add_argument("--length", type=int, default=240)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--burn", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of each step that an accelerator would take")
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dataset = {
        "files": lambda: Files(options.data),
        "mapped": lambda: Mapped(options.data),
        "made": lambda: Made(options.length, options.sleep, options.burn),
    }[options.kind]()
    loader = DataLoader(dataset, options.batch, shuffle=True, num_workers=options.workers)
    model = nn.Sequential(
        nn.Linear(256, options.width),
        nn.ReLU(),
        nn.Linear(options.width, options.width),
        nn.ReLU(),
        nn.Linear(options.width, 1),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    steps, wait_s, began = 0, 0.0, time.perf_counter()
    for _ in range(options.epochs):
        asked = time.perf_counter()
        for batch in loader:
            wait_s += time.perf_counter() - asked
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            if options.pause:
                time.sleep(options.pause)
            optimizer.step()
            steps += 1
            asked = time.perf_counter()
    total = time.perf_counter() - began
    print(json.dumps({"steps": steps, "samples": len(dataset) * options.epochs, "data_wait_fraction": wait_s / total}))


if __name__ == "__main__":
    main()
