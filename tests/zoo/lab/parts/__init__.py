"""The parts of the experiment."""

WIDTH = 6
