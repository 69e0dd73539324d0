"""The step cache: keys, results, flights, and its second tier in the store."""
