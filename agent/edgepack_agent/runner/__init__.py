"""The runner process: loads one slot, answers inference requests, reports. Updates nothing."""
