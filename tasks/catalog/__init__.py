"""The catalog run: rows, items, plans and result rows."""
