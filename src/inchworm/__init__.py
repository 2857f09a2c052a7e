"""Inchworm: policies trained by small, measured steps."""
