"""Ensembles that E³ is compared with: deep ensembles, MC dropout, BatchEnsemble and MIMO."""
