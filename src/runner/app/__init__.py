"""Puts the parts together: one module for each thing that a person can start. Adapters are constructed nowhere else."""
