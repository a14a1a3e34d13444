import torch
from torch import nn

torch.manual_seed(0)
words = "the cat sat on the mat and the dog lay under it".split()
number = {word: i for i, word in enumerate(set(words))}
model = nn.Sequential(nn.Embedding(len(number), 4), nn.Linear(4, len(number)))
opt = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(len(words) - 1):
    here, there = (torch.tensor([number[word]]) for word in words[step : step + 2])
    opt.zero_grad()
    nn.functional.cross_entropy(model(here), there).backward()
    opt.step()
