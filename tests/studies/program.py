"""Stands for a program where one is only declared."""
