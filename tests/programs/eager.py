"""A program whose file draws from a global stream when it is imported, as scikit-learn does."""

import random

from noisy import program

LUCK = random.random()

__all__ = ["program"]
