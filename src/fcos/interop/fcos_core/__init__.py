"""Weight names, YAML configs and config keys of the original FCOS."""
