"""Which adapters' requests may start when more adapters wait than there are slots: policy without an engine.

Runs in: engine core. Imports neither torch nor vllm.
"""

from shadow_runtime.admission.census import AdapterCensus
from shadow_runtime.admission.fair_share import Decision, Demand, FairShare

__all__ = ["AdapterCensus", "Decision", "Demand", "FairShare"]
