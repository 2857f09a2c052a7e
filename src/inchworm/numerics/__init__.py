"""Numerical tools without a reinforcement-learning word in them."""
