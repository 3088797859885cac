"""A plain PyTorch training loop on image-like files, as anybody would write it; it knows nothing of gpumon.

python train.py FOLDER [--epochs 2] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIDE = 224  # pixels; a file holds one image: SIDE x SIDE x 3 bytes, and its label in its name


class ImageFiles(Dataset[tuple[torch.Tensor, int]]):  # type: ignore[misc, unused-ignore]
    """One image per file; hands each file's pages back to the kernel, so that every epoch reads the disk."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.img"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file = self.files[index]
        with file.open("rb") as opened:
            raw = bytearray(opened.read())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        image = torch.frombuffer(raw, dtype=torch.uint8).view(SIDE, SIDE, 3)
        return image.permute(2, 0, 1), int(file.stem.rsplit("-", 1)[1])


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="whole epochs, until so much time has passed")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = model().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss_of = nn.CrossEntropyLoss()
    loader = DataLoader(ImageFiles(options.folder), options.batch_size, shuffle=True, num_workers=options.workers)
    until = time.monotonic() + options.seconds
    epoch = 0
    while time.monotonic() < until:
        epoch += 1
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = loss_of(network(images.to(device)[:, :, ::4, ::4].float() / 255), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / len(loader):.3f}", flush=True)


if __name__ == "__main__":
    main()
