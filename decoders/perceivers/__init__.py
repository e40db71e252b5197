"""Images -> FeatureBundle: one file for each kind of network that can be read."""
