"""Data are prepared by a pool of processes; the training itself stays in this one."""

import argparse
import multiprocessing
import os


def prepare(seed):
    import random

    rng = random.Random(seed)
    with open(f"part-{seed}.txt", "w") as file:
        file.write("prepared\n")
    return [[rng.gauss(0, 1) for _ in range(3)] for _ in range(8)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", choices=["fork", "spawn"], default="fork")
    args = parser.parse_args()

    if args.start == "fork":
        import torch  # the children have it too
    with multiprocessing.get_context(args.start).Pool(2) as pool:
        parts = pool.map(prepare, range(3))
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, part in enumerate(parts):
        x = torch.tensor(part)
        loss = (model(x) - x.mean(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, loss.item(), flush=True)
    if args.start == "fork":
        child = os.fork()
        if child == 0:  # a child that goes on training by itself: no part of this run
            model(x).sum().backward()
            optimizer.step()
            os._exit(7)
        print("child ended with", os.waitpid(child, 0)[1] >> 8)
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    main()
