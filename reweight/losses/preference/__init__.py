"""Losses from preferences: pairs, unpaired answers, K answers a prompt, and reward models."""
