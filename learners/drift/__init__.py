"""Drift detectors, their alarms and the thresholds that keep a budget of false alarms."""
