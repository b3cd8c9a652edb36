"""Reports and cards about a run: what a page is made of (``Section`` and blocks), what sections see (``View``).

This package computes and renders; it reads no files of a run: ``curate.pipelines.view`` does, and
``curate.pipelines.report`` joins the two.
"""
