"""Statistics of raw samples: medians, distribution-free intervals, comparison of two sets.

Numbers in, numbers out: nothing here knows records or claims.
"""

from zenrepro.stats.growth import exponent
from zenrepro.stats.intervals import Summary, ratio, summarise
from zenrepro.stats.significance import Comparison, compare

__all__ = ["Comparison", "Summary", "compare", "exponent", "ratio", "summarise"]
