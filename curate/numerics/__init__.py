"""Arrays in, arrays out: no Parquet, no Dask, no model."""
