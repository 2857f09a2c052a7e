"""Reinforcement learning as functions of arrays: one function, one equation."""
