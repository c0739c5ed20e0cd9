"""The phantom corpus: drawn chest radiographs whose content decides their reports."""
