"""Active data curation (JEST, ACID): selecting a batch from a super-batch on the mesh."""
