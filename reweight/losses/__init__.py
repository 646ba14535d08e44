"""Losses: a value per example before any weight or reduction, one module a family."""
