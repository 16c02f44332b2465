"""Evaluations of a captioning decoder: captions and referring expressions."""
