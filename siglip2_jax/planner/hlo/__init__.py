"""Cost analysis of compiled TPU programs (HLO text and instruction bundles)."""
