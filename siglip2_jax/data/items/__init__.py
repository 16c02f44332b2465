"""Items to embed: every image of what a user names, with its id, cut into shards."""
