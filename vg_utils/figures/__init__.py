"""Figures: matplotlib, without pyplot."""
