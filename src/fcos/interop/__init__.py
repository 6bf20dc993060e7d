"""The only place that knows other projects: their configs, weight names and conventions."""
