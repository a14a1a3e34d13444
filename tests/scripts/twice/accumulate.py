import torch

torch.manual_seed(0)
torch.set_num_threads(2)
table = torch.nn.Parameter(torch.randn(8))
index = torch.randint(0, 8, (4_000_000,))
target = torch.randn(4_000_000)
opt = torch.optim.SGD([table], lr=1e-6)
for _ in range(20):
    opt.zero_grad()
    (table[index] * target).sum().backward()  # sums the gradients of equal indices, in whatever order
    opt.step()
