"""What runs inside the training process: steps, phases, waits and stalls of one rank, written into its ring.

from rankscope.torch_hooks import attach

scope = attach()
for batch in scope.steps(loader):
    with scope.phase("augment"):
        ...
"""

from rankscope.torch_hooks.attach import attach, detach
from rankscope.torch_hooks.scope import Scope

__all__ = ["Scope", "attach", "detach"]
