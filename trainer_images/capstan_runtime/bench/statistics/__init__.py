"""Medians, intervals, effects and verdicts. Pure numpy and scipy; the unit is a trial, one run in fresh processes."""
