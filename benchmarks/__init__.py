"""Each script answers one question, prints a table, and ends with one JSON line that says where it ran."""
