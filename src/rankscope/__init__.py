"""Rankscope: tells whether a slow or dead GPU training job suffers from hardware, environment or code."""

__version__ = "0.1.0"
