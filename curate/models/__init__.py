"""Models that scorers ask: backends behind one contract."""
