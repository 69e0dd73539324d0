"""Runs pipelines in this process, and says what it needs of a job store (:mod:`pipeserve.runtime.ports`)."""
