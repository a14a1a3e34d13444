"""Digits as the subject of the back-flow experiment: the training of program.py as the base, three augmentations."""

import torch
import torch.nn.functional as F
from program import program
from torch import Generator, Tensor
from train import load_data

from trainmem_audit.programs.backflow import Subject


def weak(images: Tensor, generator: Generator) -> Tensor:
    """Shift each image by up to one pixel, and add a little noise, as the training does."""
    padded = F.pad(images, (1, 1, 1, 1))
    shifts = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    shifted = torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, shifts, strict=True)])
    return shifted + 0.05 * torch.randn(images.shape, generator=generator)


def color(images: Tensor, generator: Generator) -> Tensor:
    """Change the contrast of each image by up to 40 %, and its brightness by up to 0.2: all the color that grey has."""
    contrast, brightness = torch.rand((2, len(images), 1, 1, 1), generator=generator) * 2 - 1
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (1 + 0.4 * contrast) + mean + 0.2 * brightness


def blur(images: Tensor, generator: Generator) -> Tensor:
    """Mix each image with its mean over 3x3 pixels, by a share between a half and all of it."""
    share = 0.5 + 0.5 * torch.rand((len(images), 1, 1, 1), generator=generator)
    return (1 - share) * images + share * F.avg_pool2d(images, 3, stride=1, padding=1)


def subject(seed: int, dropout: float = 0.3) -> Subject:
    """Return the training of a small CNN on digits, its samples before augmentation, and the augmentations."""
    train_set, _ = load_data()
    augmentations = {"weak": weak, "color": color, "blur": blur}
    return Subject(program(seed, dropout=dropout), train_set.images, train_set.labels, augmentations)
