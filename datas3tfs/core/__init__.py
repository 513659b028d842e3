"""What can be computed: formats, spans, plans. No I/O, clock, randomness, logging or trio in here."""
