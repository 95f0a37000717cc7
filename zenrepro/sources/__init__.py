"""Freshness: fingerprints of everything a record was made from, as in a compiler's depfile.

``inputs`` follows the imports of a point's modules through the project's own code and keeps a
fingerprint of each file; ``changed`` computes them again and says what differs. Neither imports
what it reads. docs/decisions/freshness.md says why the imports are followed statically.
"""

from zenrepro.sources.closure import NEVER, inputs
from zenrepro.sources.files import changed

__all__ = ["NEVER", "changed", "inputs"]
