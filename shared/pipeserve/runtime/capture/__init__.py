"""What is caught of a run while it runs: prints, logs, visualizations; and what is masked in it."""
