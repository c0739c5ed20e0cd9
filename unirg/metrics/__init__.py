"""How close a candidate report comes to its reference: one module a metric, and the judge of errors."""
