"""The run: plan, execute on Dask, store, decide, export."""
