"""Measuring one call: raw samples with what disturbed them, energy, and a device's ceilings."""

from zenrepro.measure.sampling import SCALES, Sampled, sample, sample_together
from zenrepro.measure.windows import EnergyWindow, energy

__all__ = ["SCALES", "EnergyWindow", "Sampled", "energy", "sample", "sample_together"]
