"""Frozen encoders under test: features, probes, fine-tuning, several views, boxes, and what a number has to beat."""
