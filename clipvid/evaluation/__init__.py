"""Evaluation of models on data sets: metrics with confidence intervals, saved results and reports."""
