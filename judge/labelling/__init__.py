"""Label any number of images: shards of inputs -> Parquet, exactly one row an input, whatever happens on the way."""
