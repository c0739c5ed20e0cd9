"""Corpora -> cohorts: adapters, filters, splits, priors, decoding, and the shards they end in."""
