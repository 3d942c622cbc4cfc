"""The kinds of models, a file each: how a prompt, a latent and a guidance scale become a call of the network.

Enters: a further kind, as one more file here and its layout in `raydense.pipelines.pipeline_files`; README.md has how.
Uses: pipelines, config's error. Takes plain arguments, never a configuration.
"""
