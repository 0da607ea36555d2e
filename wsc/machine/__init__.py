"""The hardware: numbers, the vocabulary of steps, and closed forms. Imports nothing else of wsc but its errors."""
