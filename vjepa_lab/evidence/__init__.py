"""Tables and what follows from them: results, statistics, claims, the paper's tables. No model is known here."""
