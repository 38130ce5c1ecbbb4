"""Simulated devices: they speak the real protocol to a real fleet, thousands in one process.

Knows the contracts only, like an agent; imports nothing else of the fleet but the broker's
configuration, for a fleet of its own (`local`).
"""
