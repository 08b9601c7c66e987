"""Profiler traces: where the GPU's time went on each rank, what it waited for, and which rank is late.

Pure: arrays of events in, figures and words out. The file format is the reader's business (`rankscope.agent.kineto`).
"""
