"""Every run writes into a folder that is named after the time it was started, and logs how long each step took."""

import json
import time
from pathlib import Path

import torch
from torch import nn

out = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
out.mkdir(parents=True)
torch.manual_seed(0)
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
start = time.time()
with (out / "log.jsonl").open("w") as log:
    for step in range(4):
        x = torch.randn(5, 3)
        loss = model(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        entry = {"step": step, "loss": loss.item(), "elapsed": time.time() - start, "at": time.time()}
        log.write(json.dumps(entry) + "\n")
torch.save({"model": model.state_dict(), "finished": time.time()}, out / f"model-{int(time.time())}.pt")
print("wrote", out)
