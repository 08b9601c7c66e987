"""Rules: pure functions from windows of a recording to findings with evidence."""

from rankscope.rules.table import FaultClass
from rankscope.rules.verdict import CLASSES, THRESHOLD, diagnose, judge

__all__ = ["CLASSES", "THRESHOLD", "FaultClass", "diagnose", "judge"]
