"""Measuring one call: raw samples with what disturbed them, energy, and a device's ceilings."""

from zenrepro.measure.energy import EnergyWindow, energy
from zenrepro.measure.sampling import SCALES, Sampled, sample

__all__ = ["SCALES", "EnergyWindow", "Sampled", "energy", "sample"]
