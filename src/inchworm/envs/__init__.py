"""Environments: one adapter a file, each turning some interface into a `Pool`. They know no algorithm."""
