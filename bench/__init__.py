"""How fast it is, beside what people would use instead, on the machine at hand: see docs/performance.md."""
