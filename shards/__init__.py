"""Data at rest: sources, shard writer, index, manifest, sample data and the sharding plan."""
