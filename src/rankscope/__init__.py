"""Rankscope: a scope on every rank of a distributed training job.

This package root holds the shared vocabulary and imports the standard library only.
"""

from __future__ import annotations

__version__ = "0.1.0"
