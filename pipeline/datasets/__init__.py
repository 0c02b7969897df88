"""What ingest is made of: parts, the ledger and what is decided in it, shards, versions, and what is said of them."""
