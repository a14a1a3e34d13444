"""Regression on sequences of different lengths: a sampler that draws long ones more often, or batches by length."""

import random
import sys

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler


class Sequences(Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(1)
        self.items = [torch.randn(2 + i % 7, 3, generator=generator) for i in range(count)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class LongOnesMoreOften(Sampler):
    def __init__(self, lengths, count):
        self.lengths = lengths
        self.count = count

    def __iter__(self):
        return iter(random.choices(range(len(self.lengths)), weights=self.lengths, k=self.count))

    def __len__(self):
        return self.count


class ByLength(BatchSampler):
    """Batches of sequences of about the same length, in random order."""

    def __init__(self, lengths, batch_size):
        self.lengths = lengths
        self.batch_size = batch_size
        self.epoch = 0

    def __iter__(self):
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        random.Random(self.epoch).shuffle(batches)
        self.epoch += 1
        yield from batches

    def __len__(self):
        return -(-len(self.lengths) // self.batch_size)


def collate(items):
    return pad_sequence(items, batch_first=True), torch.tensor([len(item) for item in items])


random.seed(11)
torch.manual_seed(11)
data = Sequences(24)
lengths = [len(item) for item in data.items]
if "--batches" in sys.argv:
    loader = DataLoader(data, batch_sampler=ByLength(lengths, 6), collate_fn=collate)
else:
    loader = DataLoader(data, batch_size=6, sampler=LongOnesMoreOften(lengths, 24), collate_fn=collate)

encoder = nn.GRU(3, 8, batch_first=True)
head = nn.Linear(8, 1)
optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.01)
for epoch in range(2):
    for padded, sizes in loader:
        _, hidden = encoder(padded)
        loss = (head(hidden[-1]).squeeze(1) - sizes / 8).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(sizes.tolist(), loss.item())
