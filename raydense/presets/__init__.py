"""Complete configurations that come with the package, a YAML file each.

Enters: a setting that somebody would want by its name. Code does not.
Uses: nothing; `raydense.config` reads it.
"""
