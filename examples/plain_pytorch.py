"""A plain PyTorch loop on image-like files. There is nothing of gpumon in it: that is the point.

gpumon run -- python examples/plain_pytorch.py
"""

import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

FILES, SIDE = 640, 128


class Images(Dataset):
    def __init__(self, folder):
        self.files = sorted(folder.glob("*.img"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        raw = bytearray(self.files[index].read_bytes())
        return torch.frombuffer(raw, dtype=torch.uint8).view(3, SIDE, SIDE).float() / 255, index % 10


def main():
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for number in range(FILES):
            Path(folder, f"{number:04d}.img").write_bytes(os.urandom(3 * SIDE * SIDE))
        loader = DataLoader(Images(Path(folder)), batch_size=16, shuffle=True, num_workers=2)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for epoch in range(3):
            for images, labels in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
