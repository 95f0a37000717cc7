"""Measuring one call: raw samples with what disturbed them, energy, and a device's ceilings."""

from zenrepro.measure.sampling import SCALES, Sampled, sample
from zenrepro.measure.windows import EnergyWindow, energy

__all__ = ["SCALES", "EnergyWindow", "Sampled", "energy", "sample"]
