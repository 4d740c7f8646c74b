"""Migration of transcripts that people already have; installed as `shardstore_migrate`."""
