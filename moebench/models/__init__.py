"""Model architectures, their initialisation from published weights, and their costs."""
