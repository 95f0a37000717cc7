"""Results: the store of records, their flat view, freshness, comparing, exporting and merging."""
