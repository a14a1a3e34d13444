"""Three epochs with an evaluation after each; the best model is kept."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

TEST_BATCH = 8
WEIGHT_DECAY = 1e-2


def evaluate(model, loader):
    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in loader:
            correct += (model(x).argmax(1) == y).sum().item()
    model.train()
    return correct


torch.manual_seed(4)
x = torch.randn(48, 6)
full = TensorDataset(x, (x[:, 0] > 0).long())
train_set, test_set = random_split(full, [32, 16])
train_loader = DataLoader(train_set, batch_size=8, shuffle=True)
test_loader = DataLoader(test_set, batch_size=TEST_BATCH)

model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 2))
decay, no_decay = [], []
for name, p in model.named_parameters():
    (decay if p.ndim > 1 else no_decay).append(p)
groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": no_decay, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=0.01)
best, best_state = -1, None
for epoch in range(3):
    for inputs, targets in train_loader:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    correct = evaluate(model, test_loader)
    if correct > best:
        best, best_state = correct, copy.deepcopy(model.state_dict())
    print(f"epoch {epoch}: {correct} of {len(test_set)}")
model.load_state_dict(best_state)
torch.save(model.state_dict(), "best.pt")
print("best", best)
