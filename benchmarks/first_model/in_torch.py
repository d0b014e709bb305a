"""The README's first model in PyTorch: see __main__.py."""

import torch
from digits import images, labels, report
from torch import nn

x, y = torch.from_numpy(images), torch.from_numpy(labels)
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 10))
optimizer = torch.optim.Adam(model.parameters(), 0.01)
loss = nn.CrossEntropyLoss()
with report.training():
    for _ in range(8):
        for rows in torch.randperm(1500).split(32):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
with torch.no_grad():
    report((model(x[1500:]).argmax(1) == y[1500:]).float().mean().item())
